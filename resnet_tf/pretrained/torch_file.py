"""Read PyTorch checkpoints without PyTorch: .safetensors, and zip archives and older streams of torch.save.

Nothing that a file names is imported, called or executed.
"""

import contextlib
import functools
import io
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from resnet_tf.errors import UserError, optional_import, short, some
from resnet_tf.pickles import Foreign, Pickle, dictionary, load_pickle

# NumPy's dtype of each storage; bfloat16, which NumPy does not have, comes as its bits.
_CODES = {"Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": "u2", "Long": "i8"}
_CODES |= {"Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?"}
STORAGES = {f"torch.{kind}Storage": code for kind, code in _CODES.items()}
MAX_PICKLE = 16 * 2**20  # bytes; the description of a thousand tensors, with an optimizer's, takes 0.2 MB
STREAM_MAGIC = 0x1950A86A20F9469CFC6C
STREAM_PROTOCOL = 1001

# Under which keys training scripts keep the weights, the first of them that is there.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "state_dict_ema")
MAX_NAME = 200  # characters of a tensor's name
MAX_PARTS = 10**5  # modules and tensors of a pickled model


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
        raise UserError(
            f"{path} cannot be imported: it is cut short or damaged ({short(error)}); fetch it again"
        ) from error


def read_checkpoint(path: Path) -> Tensors:
    """The tensors of a .safetensors file or a file of torch.save, under the names that the bare network gave them."""
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file; give a PyTorch checkpoint (.pth, .pt, .safetensors)")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    # Wrappers of a network put their own name before every other: module.conv1.weight, model.conv1.weight.
    while len(heads := {name.partition(".")[0] for name in tensors}) == 1 and all(n.count(".") > 1 for n in tensors):
        prefix = f"{heads.pop()}."
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> Tensors:
    safe_open = optional_import("safetensors", "weights").safe_open
    with prefix_errors(path):
        file = safe_open(path, framework="numpy")
        # The file has its own order; that of the numbers in the names is the network's.
        names = sorted(file.keys(), key=lambda name: [part.zfill(9) for part in re.split(r"(\d+)", name)])
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}

    def read(name: str) -> np.ndarray:
        with prefix_errors(path):
            return file.get_tensor(name).astype(np.float32, copy=False)

    return {name: LazyTensor(shape, functools.partial(read, name)) for name, shape in shapes.items()}


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


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StridedTensor:
    """A tensor that lies within its storage; any other would take memory that the file has no numbers for."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise UserError("it has a tensor without a storage")
    sizes = (*shape, *strides, offset)
    whole = all(type(n) is int and 0 <= n < 2**63 for n in sizes)
    if len(shape) != len(strides) or len(shape) > 8 or not whole:
        raise UserError("it has a tensor of an impossible shape")
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if count else offset
    if count > storage.numel or last >= max(storage.numel, 1):
        raise UserError(f"it has a tensor of the shape {shape} that does not fit its {storage.numel} numbers")
    return StridedTensor(storage, offset, shape, strides)


ReadStorage = Callable[[Storage], np.ndarray]
# PyTorch before 0.4 writes the first of the tensors, Python 2 all of a dictionary.
_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": dictionary,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.nn.parameter.Parameter": lambda data, *_: data,
}


def _load_pickle(data: bytes, storages: dict[str, Storage]) -> Pickle:
    """Interpret a pickle of torch.save, and keep its storages by key."""

    def stored(pid: Any) -> Storage | Foreign:
        match pid:
            case ("storage", Foreign(name=kind), str(key), _, int(numel), *view) if kind in STORAGES and numel >= 0:
                if view in ([], [None]) and len(key) <= MAX_NAME:
                    if storages.setdefault(key, storage := Storage(kind, key, numel)) != storage:
                        raise UserError(f"it describes the storage {key[:40]} in two ways")
                    return storage
            case ("module", Foreign() as module, *_):  # the class of a pickled module
                return module
        raise UserError("it has a storage of an unknown kind; save it again with PyTorch 1.6 or later")

    return load_pickle(data, _CALLS, stored)


def read_torch_file(path: Path) -> Tensors:
    """The state_dict in a file of torch.save, whatever else lies beside it."""
    with prefix_errors(path):
        with open(path, "rb") as file:
            magic = file.read(2)
        if magic == b"PK":
            value, read_storage = _read_archive(path)
        elif magic[:1] == b"\x80":
            value, read_storage = _read_stream(path)
        else:
            raise UserError("it is neither a file of torch.save nor a .safetensors file")
        # Several tensors may share a storage and then follow one another; more than the last one would fill the memory.
        read = functools.lru_cache(maxsize=1)(read_storage)
        return {
            name: LazyTensor(tensor.shape, functools.partial(_read_tensor, tensor, path, read))
            for name, tensor in _state_dict(value).items()
        }


def _state_dict(value: Any) -> dict[str, StridedTensor]:
    """The weights in what was saved: a state_dict or a whole model, or dictionaries around one."""
    for _ in range(len(WRAPPERS)):
        if _is_module(value):
            value = _module_tensors(value)
            break
        if not isinstance(value, dict):
            break
        named = [
            key for key in WRAPPERS if _is_module(value.get(key)) or (isinstance(value.get(key), dict) and value[key])
        ]
        distinct = {id(item): item for item in value.values() if isinstance(item, dict)}  # many keys may share one
        state_dicts = {identity for identity, item in distinct.items() if _is_state_dict(item)}
        others = [key for key, item in value.items() if id(item) in state_dicts]
        if not named and not others:
            break
        if not named and len(others) > 1:
            raise UserError(f"it holds several state_dicts ({some([str(key)[:40] for key in others])}); save one alone")
        value = value[(named or others)[0]]
    if not isinstance(value, dict) or not any(isinstance(item, StridedTensor) for item in value.values()):
        raise UserError(f"it holds no state_dict: {_describe(value)}; save the model's state_dict() alone")
    for name, item in value.items():
        if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
            raise UserError(f"its state_dict has a key that is no name of a tensor ({str(name)[:40]!a})")
        if not isinstance(item, StridedTensor):
            raise UserError(f"its state_dict holds {_describe(item)} as {name}; save the model's state_dict() alone")
    return value


def _is_module(value: Any) -> bool:
    """Whether something was pickled as a torch.nn.Module; its class is not here, its tensors are."""
    return isinstance(value, Foreign) and isinstance(value.state, dict) and "_modules" in value.state


def _module_tensors(module: Foreign) -> dict[str, StridedTensor]:
    """What the state_dict() of a pickled module would be."""
    found: dict[str, StridedTensor] = {}
    pending, budget = [("", module)], MAX_PARTS
    while pending:
        prefix, module = pending.pop()
        parts = [module.state.get(name) for name in ("_parameters", "_buffers", "_modules")]
        parameters, buffers, modules = (part if isinstance(part, dict) else {} for part in parts)
        budget -= 1 + len(parameters) + len(buffers) + len(modules)
        if budget < 0 or len(prefix) > MAX_NAME:
            raise UserError("its model has more parts than any network; save the model's state_dict() alone")
        items = (parameters | buffers).items()
        found |= {f"{prefix}{name}": item for name, item in items if isinstance(item, StridedTensor)}
        pending += [(f"{prefix}{name}.", item) for name, item in reversed(modules.items()) if _is_module(item)]
    return found


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and value != {} and all(isinstance(item, StridedTensor) for item in value.values())


def _describe(value: Any) -> str:
    """What a pickled value is, in a few words; a message has no room for more."""
    if isinstance(value, Foreign):
        name = value.name[:MAX_NAME].encode("unicode_escape").decode()
        return f"{name}, no tensor or container, of which nothing was run"
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    objects = [item for item in value.values() if isinstance(item, Foreign)]
    keys = some([repr(key)[:40] for key in list(value)[:6]]) or "nothing in it"
    return f"a dictionary with {keys}" + (f", and {_describe(objects[0])}" if objects else "")


def _read_tensor(tensor: StridedTensor, path: Path, read_storage: ReadStorage) -> np.ndarray:
    with prefix_errors(path):
        numbers = read_storage(tensor.storage)
    strides = [step * numbers.itemsize for step in tensor.strides]
    window = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
    if tensor.storage.kind == "torch.BFloat16Storage":
        return (window.astype(np.uint32) << 16).view(np.float32)
    return window.astype(np.float32, copy=False)


def _read_archive(path: Path) -> tuple[Any, ReadStorage]:
    """What the pickle of a zip archive holds, and the function that reads a storage of it."""
    archive = zipfile.ZipFile(path)
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError("it is a zip archive, but not one of torch.save")
    root = pickles[0].removesuffix("data.pkl")
    size = path.stat().st_size

    def read_entry(name: str, limit: int = size) -> bytes:
        entry = entries.get(root + name)
        if entry is None:
            raise UserError(f"its entry {name} is missing; fetch it again")
        # torch.save never compresses, so that no entry can be larger than the file.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"its entry {name} is compressed; save it again with torch.save, which never does that")
        if entry.file_size > min(size, limit):
            raise UserError(f"its entry {name} is said to have {entry.file_size:,} bytes; fetch it again")
        return archive.read(entry)

    big_endian = root + "byteorder" in entries and read_entry("byteorder", 16) == b"big"

    def read_storage(storage: Storage) -> np.ndarray:
        dtype = storage.dtype(big_endian)
        data = read_entry(f"data/{storage.key}")
        if len(data) != storage.numel * dtype.itemsize:
            raise UserError(f"its entry data/{storage.key} has {len(data)} bytes for {storage.numel} {dtype} numbers")
        return np.frombuffer(data, dtype)

    return _load_pickle(read_entry("data.pkl", MAX_PICKLE), {}).value, read_storage


def _read_stream(path: Path) -> tuple[Any, ReadStorage]:
    """What the pickle of an older file of torch.save holds, and the function that reads a storage of it."""
    with open(path, "rb") as file:
        storages: dict[str, Storage] = {}
        magic, protocol, system, content, keys = (_next_pickle(file, storages) for _ in range(5))
        if magic.value != STREAM_MAGIC or protocol.value != STREAM_PROTOCOL or not isinstance(system.value, dict):
            raise UserError("it is not a file of torch.save")
        big_endian = not system.value.get("little_endian", True)
        offsets = _storage_offsets(file, keys.value, storages, path.stat().st_size)

    def read_storage(storage: Storage) -> np.ndarray:
        if storage.key not in offsets:
            raise UserError(f"its storage {storage.key} is missing; fetch it again")
        return np.fromfile(path, storage.dtype(big_endian), storage.numel, offset=offsets[storage.key])

    return content.value, read_storage


def _next_pickle(file: BinaryIO, storages: dict[str, Storage]) -> Pickle:
    start = file.tell()
    pickle = _load_pickle(file.read(MAX_PICKLE), storages)
    file.seek(start + pickle.length)
    return pickle


def _storage_offsets(file: BinaryIO, keys: Any, storages: dict[str, Storage], size: int) -> dict[str, int]:
    """Where the numbers of each storage begin in a stream: they follow one another, each after its count."""
    offsets: dict[str, int] = {}
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in storages:
            shown = key[:40] if isinstance(key, str) else type(key).__name__
            raise UserError(f"its storage {shown!r} belongs to no tensor")
        count = int.from_bytes(file.read(8), "little")
        length = count * storages[key].dtype().itemsize
        if count != storages[key].numel or file.tell() + length > size:
            raise UserError(f"its storage {key} is cut short; fetch it again")
        offsets[key] = file.tell()
        file.seek(length, io.SEEK_CUR)
    return offsets
