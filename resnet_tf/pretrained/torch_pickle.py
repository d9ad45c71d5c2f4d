"""Interpret the pickles of torch.save: plain containers, descriptions of tensors, and of all other objects the name.

Nothing that a pickle names is imported, called or executed, and none takes more time or memory than its length bounds.
"""

import math
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from resnet_tf.errors import UserError

# NumPy's dtype of each storage; bfloat16, which NumPy does not have, comes as its bits.
STORAGES = {
    "torch.DoubleStorage": "f8",
    "torch.FloatStorage": "f4",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": "u2",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}

# Of a pickle; the description of a thousand tensors, with an optimizer's, takes 0.2 MB and 50,000 instructions.
MAX_BYTES = 16 * 2**20
MAX_INSTRUCTIONS = 10**6
MAX_RANK = 8


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


@dataclass(eq=False)
class Foreign:
    """Stands for what a pickle names, or for what is made of it: the name, and the attributes that it was given."""

    name: str
    state: Any = field(default=None, repr=False)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StridedTensor:
    """A tensor that lies within its storage; any other would take memory that the file has no numbers for."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise UserError("it has a tensor without a storage")
    sizes = (*shape, *strides, offset)
    whole = all(type(n) is int and 0 <= n < 2**63 for n in sizes)
    if len(shape) != len(strides) or len(shape) > MAX_RANK or not whole:
        raise UserError("it has a tensor of an impossible shape")
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if count else offset
    if count > storage.numel or last >= max(storage.numel, 1):
        raise UserError(f"it has a tensor of the shape {shape} that does not fit its {storage.numel} numbers")
    return StridedTensor(storage, offset, shape, strides)


def _dictionary(pairs: Any = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in pairs}


def _key(key: Any) -> Any:
    """A dictionary's key; what may take long to hash, as nested tuples that share their parts, becomes another."""
    simple = type(key) in (str, bool, float, type(None)) or (type(key) is int and abs(key) < 2**63)
    return key if simple else Foreign(type(key).__name__)


# What is made by calling a name; PyTorch before 0.4 writes the first of the tensors, Python 2 all of a dictionary.
_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dictionary,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.nn.parameter.Parameter": lambda data, *_: data,
}


def _call(callee: Any, arguments: Any) -> Any:
    if not isinstance(callee, Foreign):
        raise UserError("its pickle calls what is no name")
    return _CALLS[callee.name](*arguments) if callee.name in _CALLS else Foreign(callee.name)


def _storage_of(pid: Any) -> Storage | Foreign:
    """What a persistent id stands for: a storage, or the class of a pickled module."""
    match pid:
        case ("storage", Foreign(name=kind), str(key), _, int(numel), *view) if kind in STORAGES and numel >= 0:
            if view in ([], [None]):
                return Storage(kind, key, numel)
        case ("module", Foreign() as module, *_):
            return module
    raise UserError("it has a storage of an unknown kind; save it again with PyTorch 1.6 or later")


class Pickle(NamedTuple):
    """What a pickle holds, its storages by key, and its length in bytes."""

    value: Any
    storages: dict[str, Storage]
    length: int


def load_pickle(data: bytes) -> Pickle:
    """Interpret the pickle that `data` begins with, in time and memory that its length bounds."""
    try:
        return _interpret(data)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"its pickle is damaged ({reason}); fetch it again") from error


def _interpret(data: bytes) -> Pickle:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    storages: dict[str, Storage] = {}

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    instructions: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(data)
    for count, (opcode, argument, position) in enumerate(instructions):
        if count > MAX_INSTRUCTIONS:
            raise UserError(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions; save a state_dict() alone")
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "BINPERSID":
                stored = stack[-1] = _storage_of(stack[-1])
                if isinstance(stored, Storage) and storages.setdefault(stored.key, stored) != stored:
                    raise UserError(f"it describes the storage {stored.key[:40]} in two ways")
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack[-1] = _call(stack[-1], arguments)
            case "NEWOBJ_EX":
                del stack[-2:]
            case "OBJ":
                callee, *arguments = pop_to_mark()
                stack.append(_call(callee, arguments))
            case "INST":
                stack.append(_call(Foreign(argument.replace(" ", ".")), pop_to_mark()))
            case "GLOBAL":
                stack.append(Foreign(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                module, name = stack[-2:]
                stack[-2:] = [Foreign(f"{module:s}.{name:s}")]
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Foreign):
                    stack[-1].state = state
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(pop_to_mark())
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = pop_to_mark()
                stack.append(_dictionary(zip(items[::2], items[1::2], strict=True)))
            case "EMPTY_SET":
                stack.append(Foreign("set"))
            case "FROZENSET":
                pop_to_mark()
                stack.append(Foreign("frozenset"))
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                items = pop_to_mark()
                _fill(stack[-1], items)
            case "APPEND" | "SETITEM":
                size = 1 if opcode.name == "APPEND" else 2
                items = stack[-size:]
                del stack[-size:]
                _fill(stack[-1], items)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "POP":
                stack.pop()
            case "POP_MARK":
                pop_to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return Pickle(stack.pop(), storages, (position or 0) + 1)
            case name if argument is None or name in ("PERSID", "EXT1", "EXT2", "EXT4"):
                raise UserError(f"its pickle has the instruction {name}, which torch.save does not write")
            case _:
                stack.append(argument)
    raise UserError("its pickle is cut short; fetch it again")


def _fill(container: Any, items: list[Any]) -> None:
    """Put items into a list, or keys and values into a dictionary; a placeholder keeps nothing."""
    if isinstance(container, dict):
        container.update(_dictionary(zip(items[::2], items[1::2], strict=True)))
    elif isinstance(container, list):
        container.extend(items)
    elif not isinstance(container, Foreign):
        raise UserError("its pickle fills what is no container")
