"""Read PyTorch checkpoints without PyTorch and without executing anything in them."""

import collections
import contextlib
import functools
import io
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from resnet_tf.errors import UserError, optional_import


@dataclass(frozen=True)
class LazyTensor:
    """Shape of a tensor, and a function that reads its values as float32."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def as_float32(values: np.ndarray, *, bfloat16: bool = False) -> np.ndarray:
    """Numbers of any width as float32; `bfloat16` ones come as unsigned 16-bit integers."""
    if bfloat16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def check_extent(shape: Sequence[int], strides: Sequence[int], offset: int, numel: int) -> None:
    """Check that a strided tensor lies within its storage of `numel` elements, each element used at most once.

    Raises:
        UserError: it does not, so that reading it would take memory that the file has no numbers for.
    """
    sizes = (*shape, *strides, offset)
    if len(shape) != len(strides) or len(shape) > 8 or any(type(n) is not int or n < 0 for n in sizes):
        raise UserError(f"it has a tensor of the impossible shape {tuple(shape)} with strides {tuple(strides)}")
    count = 1
    for size in shape:
        count *= size
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if count else offset
    if count > numel or last >= max(numel, 1):
        raise UserError(f"it has a tensor of the shape {tuple(shape)} that does not fit its storage of {numel} numbers")


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

LIMIT = 16 * 2**20  # bytes; the description of a thousand tensors takes 0.1 MB


# Named tuples, because a pickle's BUILD instruction can change any object that has a __dict__ or a __setstate__.
class Storage(NamedTuple):
    """`numel` numbers of a kind in `STORAGES` that lie elsewhere in the file under a key."""

    kind: str
    key: str
    numel: int


class Strided(NamedTuple):
    """A tensor as the pickle describes it: a window on a storage, in elements, and within it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Name(NamedTuple):
    """What a name in the pickle stands for: a kind of storage, or something to call."""

    what: str
    call: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self.call is None:
            raise UserError(f"it calls torch.{self.what}")
        return self.call(*arguments)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Strided:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise UserError("it has a tensor without a storage")
    check_extent(shape, strides, offset, storage.numel)
    return Strided(storage, offset, shape, strides)


def _parameter(data: Any, *_: Any) -> Any:
    return data


class _Unpickler(pickle.Unpickler):
    """Builds plain containers and tensor descriptions; every other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name of the pickle."""
        if (module, name) == ("collections", "OrderedDict"):
            return _Name("collections.OrderedDict", collections.OrderedDict)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Name("torch._utils._rebuild_tensor_v2", _tensor)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _Name("torch._utils._rebuild_parameter", _parameter)
        if module == "torch" and name in STORAGES:
            return _Name(name)
        raise UserError(
            f"it holds {module}.{name}, which is neither a tensor nor a plain container; nothing of it was run: "
            "save the model's state_dict() alone, in PyTorch, and import that"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a persistent id describes."""
        match pid:
            case ("storage", _Name(what=kind), str(key), _, int(numel)) if kind in STORAGES and numel >= 0:
                return Storage(kind, key, numel)
            case ("storage", _Name(what=kind), str(key), _, int(numel), None) if kind in STORAGES and numel >= 0:
                return Storage(kind, key, numel)
        raise UserError("it has a storage of a kind that is not known; save it again with PyTorch 1.6 or later")


def load_pickle(file: BinaryIO) -> Any:
    """Read one pickle from where `file` stands, and leave the file behind it.

    Returns:
        Plain containers, numbers and text, with a `Strided` for each tensor.

    Raises:
        UserError: the pickle is damaged, too long, or holds anything else. The message goes on from a file's name.
    """
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
    """Look at each instruction of a pickle for what would take more memory than the file backs."""
    for count, (opcode, argument, position) in enumerate(pickletools.genops(file)):
        if (position or 0) - start > LIMIT:
            raise UserError(f"its pickle is longer than {LIMIT} bytes, far more than a network's description takes")
        # The unpickler makes room for as many remembered objects as the highest index says.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (not isinstance(argument, int) or argument > count):
            raise UserError(f"its pickle remembers object {argument} after {count} instructions")


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

ReadStorage = Callable[[Storage], np.ndarray]


def read_torch_file(path: Path) -> Any:
    """What torch.save wrote, with a `LazyTensor` for each tensor, and nothing in it run.

    Args:
        path: a file of torch.save, zip archive or older stream, of any byte order.

    Returns:
        Plain containers, numbers and text. The tensors' values are read from the file later, one storage at a time.

    Raises:
        UserError: the file is damaged, or holds something other than tensors and plain containers.
    """
    with prefix_errors(path):
        with open(path, "rb") as file:
            head = file.read(4)
        if head[:2] == b"PK":
            value, read = _read_archive(path)
        elif head[:3] == b"\x80\x02\x8a":
            value, read = _read_stream(path)
        else:
            raise UserError("it is neither a file of torch.save nor a .safetensors file")
        return _with_tensors(value, _tensor_reader(path, read))


@contextlib.contextmanager
def prefix_errors(path: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path} cannot be imported: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # readers of damaged files raise whatever they stumble over
        raise UserError(f"{path} cannot be imported: it is cut short or damaged ({error}); fetch it again") from error


def _read_archive(path: Path) -> tuple[Any, ReadStorage]:
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
            raise UserError(f"its part {name} is missing; fetch it again")
        # torch.save never compresses, so that no part can be larger than the file.
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            raise UserError(f"its part {name} is compressed; save it again with torch.save, which never does that")
        return archive.read(entry)

    big = root + "byteorder" in entries and read_entry("byteorder") == b"big"

    def read(storage: Storage) -> np.ndarray:
        dtype = _dtype(storage, big)
        data = read_entry(f"data/{storage.key}")
        if len(data) != storage.numel * dtype.itemsize:
            raise UserError(f"its part data/{storage.key} has {len(data)} bytes for {storage.numel} {dtype} numbers")
        return np.frombuffer(data, dtype)

    return load_pickle(io.BytesIO(read_entry("data.pkl"))), read


def _read_stream(path: Path) -> tuple[Any, ReadStorage]:
    with open(path, "rb") as file:
        magic, protocol, system = (load_pickle(file) for _ in range(3))
        if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL or not isinstance(system, dict):
            raise UserError("it is not a file of torch.save")
        big = not system.get("little_endian", True)
        value = load_pickle(file)
        keys = load_pickle(file)
        places = _places(file, keys, _by_key(_storages(value)), path.stat().st_size)

    def read(storage: Storage) -> np.ndarray:
        if storage.key not in places:
            raise UserError(f"its storage {storage.key} is missing; fetch it again")
        return np.fromfile(path, _dtype(storage, big), storage.numel, offset=places[storage.key])

    return value, read


def _dtype(storage: Storage, big_endian: bool) -> np.dtype:
    return np.dtype(STORAGES[storage.kind]).newbyteorder(">" if big_endian else "<")


def _places(file: BinaryIO, keys: Any, storages: dict[str, Storage], size: int) -> dict[str, int]:
    """Where in a stream the numbers of each storage begin: they follow one another, each after its count."""
    places: dict[str, int] = {}
    for key in keys if isinstance(keys, list) else []:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise UserError(f"its storage {key!r} belongs to no tensor")
        count = int.from_bytes(file.read(8), "little")
        width = _dtype(storage, False).itemsize
        if count != storage.numel or file.tell() + count * width > size:
            raise UserError(f"its storage {key} is cut short; fetch it again")
        places[key] = file.tell()
        file.seek(count * width, io.SEEK_CUR)
    return places


def _by_key(storages: Iterator[Storage]) -> dict[str, Storage]:
    known: dict[str, Storage] = {}
    for storage in storages:
        if known.setdefault(storage.key, storage) != storage:
            raise UserError(f"it describes the storage {storage.key} in two ways")
    return known


def _storages(value: Any) -> Iterator[Storage]:
    """The storages of all tensors in nested containers."""
    if isinstance(value, Strided):
        yield value.storage
    elif isinstance(value, dict):
        for item in dict.values(value):
            yield from _storages(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _storages(item)


def _tensor_reader(path: Path, read: ReadStorage) -> Callable[[Strided], LazyTensor]:
    # Several tensors may share a storage and then follow one another; more than the last one would fill the memory.
    read_once = functools.lru_cache(maxsize=1)(read)

    def tensor(description: Strided) -> LazyTensor:
        def values() -> np.ndarray:
            with prefix_errors(path):
                numbers = read_once(description.storage)
            window = np.lib.stride_tricks.as_strided(
                numbers[description.offset :],
                description.shape,
                [step * numbers.itemsize for step in description.strides],
                writeable=False,
            )
            return as_float32(window, bfloat16=description.storage.kind == "BFloat16Storage")

        return LazyTensor(description.shape, values)

    return tensor


def _with_tensors(value: Any, tensor: Callable[[Strided], LazyTensor]) -> Any:
    """A copy of the outer containers, dictionaries in dictionaries, whose tensors can be read."""
    if isinstance(value, Strided):
        return tensor(value)
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensor) for key, item in dict.items(value)}
    return value


# Under which keys training scripts keep the weights, and what wrappers of a network put before every name.
WRAPPERS = ("state_dict", "model")
PREFIXES = ("module.", "model.")

Tensors = dict[str, LazyTensor]


def read_checkpoint(path: Path) -> Tensors:
    """The tensors of a checkpoint, under the names that the bare network gave them.

    Args:
        path: a .safetensors file, or a file of torch.save (.pt, .pth, .th; zip archive or older stream), holding
            a state_dict or a dictionary with one under "state_dict" or "model".

    Raises:
        UserError: the file is not there, is damaged, holds no state_dict, or needs a package that is missing.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist or is no file; give a .pth, .pt, .th or .safetensors checkpoint")
    value = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    for wrapper in WRAPPERS:
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
            value = value[wrapper]
    if not _is_state_dict(value):
        raise UserError(
            f"{path} holds no state_dict: {_describe(value)}; save the model's state_dict(), alone or in a "
            f"dictionary under {' or '.join(map(repr, WRAPPERS))}"
        )
    return _without_prefixes(value)


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(item, LazyTensor) for item in value.values())


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dictionary with {', '.join(map(repr, list(value)[:5])) or 'nothing in it'}"
    return f"a {type(value).__name__}"


def _without_prefixes(tensors: Mapping[str, LazyTensor]) -> Tensors:
    stripped = dict(tensors)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in stripped):
            stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped


def _read_safetensors(path: Path) -> Tensors:
    safe_open = optional_import("safetensors", "weights").safe_open
    with prefix_errors(path):
        file = safe_open(path, framework="numpy")
        return {name: _stored(path, file, name) for name in file.keys()}  # noqa: SIM118 - no mapping


def _stored(path: Path, file: Any, name: str) -> LazyTensor:
    def values() -> Any:
        with prefix_errors(path):
            return as_float32(file.get_tensor(name))

    return LazyTensor(tuple(file.get_slice(name).get_shape()), values)
