"""Read the pickles in PyTorch checkpoints: tensor descriptions and plain containers; nothing in them is executed."""

import collections
import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from resnet_tf.errors import UserError

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
        raise UserError(
            f"it has a tensor of the shape {shape} that does not fit its storage of {storage.numel} numbers"
        )
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
            f"it holds {module}.{name}, which is neither a tensor nor a plain container; nothing of it was run: "
            "save the model's state_dict() alone, in PyTorch, and import that"
        )

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", _Name(name=kind), str(key), _, int(numel)) if kind in STORAGES and numel >= 0:
                return Storage(kind, key, numel)
            case ("storage", _Name(name=kind), str(key), _, int(numel), None) if kind in STORAGES and numel >= 0:
                return Storage(kind, key, numel)
        raise UserError("it has a storage of an unknown kind; save it again with PyTorch 1.6 or later")


def load_pickle(file: BinaryIO) -> Any:
    """Read one pickle from where `file` stands, with a `StridedTensor` for each tensor, and leave the file behind it.

    Raises UserError, whose message continues the file's name, for a pickle that is damaged or holds anything else.
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
    """Refuse instructions that would take more memory than the file backs."""
    for count, (opcode, argument, position) in enumerate(pickletools.genops(file)):
        if (position or 0) - start > MAX_BYTES:
            raise UserError(f"its pickle is longer than {MAX_BYTES} bytes, far more than a network's description takes")
        # The unpickler makes room for as many remembered objects as the highest index says.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (not isinstance(argument, int) or argument > count):
            raise UserError(f"its pickle remembers object {argument} after {count} instructions")
