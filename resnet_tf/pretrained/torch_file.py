"""Read PyTorch checkpoints without PyTorch: .safetensors, and zip archives and older streams of torch.save.

The pickles in them give tensor descriptions and plain containers; nothing in them is executed.
"""

import collections
import contextlib
import functools
import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from resnet_tf.errors import UserError, optional_import

STREAM_MAGIC = 0x1950A86A20F9469CFC6C
STREAM_PROTOCOL = 1001

# Under which keys training scripts keep the weights, and what wrappers of a network put before every name.
WRAPPERS = ("state_dict", "model")
PREFIXES = ("module.", "model.")


@dataclass(frozen=True)
class LazyTensor:
    """Shape of a tensor, and a function that reads its values as float32."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


Tensors = dict[str, LazyTensor]


@contextlib.contextmanager
def prefix_errors(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in the block into a UserError that begins with the file's name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path} cannot be imported: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # readers of damaged files raise whatever they stumble over
        raise UserError(f"{path} cannot be imported: it is cut short or damaged ({error}); fetch it again") from error


def read_checkpoint(path: Path) -> Tensors:
    """The tensors of a .safetensors file or a file of torch.save, under the names that the bare network gave them."""
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file; give a .pth, .pt, .th or .safetensors checkpoint")
    value = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    for wrapper in WRAPPERS:
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
            value = value[wrapper]
    if not isinstance(value, dict) or not value or not all(isinstance(item, LazyTensor) for item in value.values()):
        found = f"a {type(value).__name__}"
        if isinstance(value, dict):
            found = f"a dictionary with {', '.join(map(repr, list(value)[:5])) or 'nothing in it'}"
        raise UserError(f"{path} holds no state_dict: {found}; save the model's state_dict() alone")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in value):
            value = {name.removeprefix(prefix): tensor for name, tensor in value.items()}
    return value


def _read_safetensors(path: Path) -> Tensors:
    safe_open = optional_import("safetensors", "weights").safe_open
    with prefix_errors(path):
        file = safe_open(path, framework="numpy")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping

    def read(name: str) -> np.ndarray:
        with prefix_errors(path):
            return file.get_tensor(name).astype(np.float32, copy=False)

    return {name: LazyTensor(shape, functools.partial(read, name)) for name, shape in shapes.items()}


# NumPy's dtype of each storage; bfloat16, which NumPy does not have, comes as its bits.
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}

MAX_BYTES = 16 * 2**20  # of a pickle; the description of a thousand tensors takes 0.1 MB
MAX_RANK = 8


# Named tuples, because a pickle's BUILD instruction can change any object that has a __dict__ or a __setstate__.
class Storage(NamedTuple):
    """`numel` numbers of a kind in `STORAGES` that lie elsewhere in the file under a key."""

    kind: str
    key: str
    numel: int

    def dtype(self, big_endian: bool = False) -> np.dtype:
        return np.dtype(STORAGES[self.kind]).newbyteorder(">" if big_endian else "<")


class StridedTensor(NamedTuple):
    """A tensor as the pickle describes it: a window on a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Name(NamedTuple):
    """What a name in the pickle stands for: a kind of storage, or a function that may be called."""

    name: str
    function: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self.function is None:
            raise UserError(f"it calls torch.{self.name}")
        return self.function(*arguments)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StridedTensor:
    """A tensor that lies within its storage; any other would take memory that the file has no numbers for."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise UserError("it has a tensor without a storage")
    sizes = (*shape, *strides, offset)
    if len(shape) != len(strides) or len(shape) > MAX_RANK or any(type(n) is not int or n < 0 for n in sizes):
        raise UserError(f"it has a tensor of the impossible shape {shape} with strides {strides}")
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if count else offset
    if count > storage.numel or last >= max(storage.numel, 1):
        raise UserError(f"it has a tensor of the shape {shape} that does not fit its {storage.numel} numbers")
    return StridedTensor(storage, offset, shape, strides)


_ALLOWED = {
    ("collections", "OrderedDict"): _Name("OrderedDict", collections.OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2"): _Name("_rebuild_tensor_v2", _rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Name("_rebuild_parameter", lambda data, *_: data),
    **{("torch", kind): _Name(kind) for kind in STORAGES},
}


class _Unpickler(pickle.Unpickler):
    """Builds plain containers and tensor descriptions; every other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise UserError(
            f"it holds {module}.{name}, no tensor or container, and nothing of it was run; save a state_dict() alone"
        )

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", _Name(name=kind), str(key), _, int(numel), *view) if kind in STORAGES and numel >= 0:
                if view in ([], [None]):
                    return Storage(kind, key, numel)
        raise UserError("it has a storage of an unknown kind; save it again with PyTorch 1.6 or later")


def load_pickle(file: BinaryIO) -> Any:
    """Read one pickle, with a `StridedTensor` for each tensor, and leave `file` behind it."""
    start = file.tell()
    try:
        _check_memory(file, start)
        length = file.tell() - start
        file.seek(start)
        return _Unpickler(io.BytesIO(file.read(length)), encoding="utf-8").load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"its pickle is damaged ({type(error).__name__}: {error}); fetch it again") from error


def _check_memory(file: BinaryIO, start: int) -> None:
    """Refuse instructions that would take more memory than the file backs."""
    for count, (opcode, argument, position) in enumerate(pickletools.genops(file)):
        if (position or 0) - start > MAX_BYTES:
            raise UserError(f"its pickle is longer than {MAX_BYTES} bytes, far more than a network's description takes")
        # The unpickler makes room for as many remembered objects as the highest index says.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (not isinstance(argument, int) or argument > count):
            raise UserError(f"its pickle remembers object {argument} after {count} instructions")


ReadStorage = Callable[[Storage], np.ndarray]


def read_torch_file(path: Path) -> Any:
    """What torch.save wrote: plain containers, with a `LazyTensor` for each tensor; no code in the file is run."""
    with prefix_errors(path):
        with open(path, "rb") as file:
            magic = file.read(4)
        if magic[:2] == b"PK":
            value, read_storage = _read_archive(path)
        elif magic[:3] == b"\x80\x02\x8a":
            value, read_storage = _read_stream(path)
        else:
            raise UserError("it is neither a file of torch.save nor a .safetensors file")
        # Several tensors may share a storage and then follow one another; more than the last one would fill the memory.
        return _with_lazy_tensors(value, path, functools.lru_cache(maxsize=1)(read_storage))


def _with_lazy_tensors(value: Any, path: Path, read_storage: ReadStorage) -> Any:
    if isinstance(value, StridedTensor):
        return LazyTensor(value.shape, functools.partial(_read_tensor, value, path, read_storage))
    if isinstance(value, dict):
        return {key: _with_lazy_tensors(item, path, read_storage) for key, item in dict.items(value)}
    return value


def _read_tensor(tensor: StridedTensor, path: Path, read_storage: ReadStorage) -> np.ndarray:
    with prefix_errors(path):
        numbers = read_storage(tensor.storage)
    strides = [step * numbers.itemsize for step in tensor.strides]
    window = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
    if tensor.storage.kind == "BFloat16Storage":
        return (window.astype(np.uint32) << 16).view(np.float32)
    return window.astype(np.float32, copy=False)


def _read_archive(path: Path) -> tuple[Any, ReadStorage]:
    """The pickle of a zip archive, and the function that reads a storage of it."""
    archive = zipfile.ZipFile(path)
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError("it is a zip archive, but not one of torch.save")
    root = pickles[0].removesuffix("data.pkl")
    size = path.stat().st_size

    def read_entry(name: str) -> bytes:
        entry = entries.get(root + name)
        if entry is None:
            raise UserError(f"its entry {name} is missing; fetch it again")
        # torch.save never compresses, so that no entry can be larger than the file.
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            raise UserError(f"its entry {name} is compressed; save it again with torch.save, which never does that")
        return archive.read(entry)

    big_endian = root + "byteorder" in entries and read_entry("byteorder") == b"big"

    def read_storage(storage: Storage) -> np.ndarray:
        dtype = storage.dtype(big_endian)
        data = read_entry(f"data/{storage.key}")
        if len(data) != storage.numel * dtype.itemsize:
            raise UserError(f"its entry data/{storage.key} has {len(data)} bytes for {storage.numel} {dtype} numbers")
        return np.frombuffer(data, dtype)

    return load_pickle(io.BytesIO(read_entry("data.pkl"))), read_storage


def _read_stream(path: Path) -> tuple[Any, ReadStorage]:
    """The pickle of an older file of torch.save, and the function that reads a storage of it."""
    with open(path, "rb") as file:
        magic, protocol, system = (load_pickle(file) for _ in range(3))
        if magic != STREAM_MAGIC or protocol != STREAM_PROTOCOL or not isinstance(system, dict):
            raise UserError("it is not a file of torch.save")
        big_endian = not system.get("little_endian", True)
        value = load_pickle(file)
        keys = load_pickle(file)
        offsets = _storage_offsets(file, keys, value, path.stat().st_size)

    def read_storage(storage: Storage) -> np.ndarray:
        if storage.key not in offsets:
            raise UserError(f"its storage {storage.key} is missing; fetch it again")
        return np.fromfile(path, storage.dtype(big_endian), storage.numel, offset=offsets[storage.key])

    return value, read_storage


def _storage_offsets(file: BinaryIO, keys: Any, value: Any, size: int) -> dict[str, int]:
    """Where the numbers of each storage begin in a stream: they follow one another, each after its count."""
    storages: dict[str, Storage] = {}
    for storage in _storages(value):
        if storages.setdefault(storage.key, storage) != storage:
            raise UserError(f"it describes the storage {storage.key} in two ways")
    offsets: dict[str, int] = {}
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in storages:
            raise UserError(f"its storage {key!r} belongs to no tensor")
        count = int.from_bytes(file.read(8), "little")
        length = count * storages[key].dtype().itemsize
        if count != storages[key].numel or file.tell() + length > size:
            raise UserError(f"its storage {key} is cut short; fetch it again")
        offsets[key] = file.tell()
        file.seek(length, io.SEEK_CUR)
    return offsets


def _storages(value: Any) -> Iterator[Storage]:
    if isinstance(value, StridedTensor):
        yield value.storage
    elif isinstance(value, dict):
        for item in dict.values(value):
            yield from _storages(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _storages(item)
