"""The part of the pickle language that a PyTorch checkpoint needs, and nothing that can run code.

A pickle is a program. Here it is read twice: once to see that it has an end and asks for no more memory
than it can fill, and once by an unpickler that knows three functions, the kinds of storage, and no other name.
"""

import collections
import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from resnet_tf.errors import UserError
from resnet_tf.transfer.tensors import check_extent

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
