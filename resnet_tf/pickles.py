"""Interpret pickles of strangers: plain containers, and of all other objects the name.

Nothing that a pickle names is imported, called or executed, and none takes more time or memory than its length bounds.
"""

import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from resnet_tf.errors import UserError

# The description of a thousand tensors, with an optimizer's, takes 50,000; CIFAR-100's images for training 260,000.
MAX_INSTRUCTIONS = 10**6
MAX_NAME = 1000  # characters of a name or key; longer ones take long to compare
_OBJECT = [pickletools.anyobject]
_LITERALS = {code.name for code in pickletools.opcodes if code.arg and code.stack_after not in ([], _OBJECT)}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


@dataclass(eq=False)
class Foreign:
    """Stands for what a pickle names, or for what is made of it: the name, and the attributes that it was given."""

    name: str
    state: Any = field(default=None, repr=False)


class Pickle(NamedTuple):
    """What a pickle holds, the names that it has of anything, and its length in bytes."""

    value: Any
    names: set[str]
    length: int


def dictionary(pairs: Any = ()) -> dict[Any, Any]:
    """A dictionary of names and numbers as keys; keys of other kinds become placeholders."""
    return {_key(key): value for key, value in pairs}


def _key(key: Any) -> Any:
    """A dictionary's key; what may take long to hash, as nested tuples that share their parts, becomes another."""
    if type(key) in (str, bytes):
        return key if len(key) <= MAX_NAME else Foreign("str")
    simple = type(key) in (bool, float, type(None)) or (type(key) is int and abs(key) < 2**63)
    return key if simple else Foreign(type(key).__name__)


def load_pickle(
    data: bytes, calls: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any] | None = None
) -> Pickle:
    """Interpret the pickle that `data` begins with; Python 2's byte strings become texts of Latin-1.

    `calls` makes something of the arguments with which a name is called, and `persistent` of a persistent id, each in
    time that their length bounds. A damaged pickle raises anything.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    names: set[str] = set()
    spent = 0

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def name_of(text: str) -> Foreign:
        if len(text) > MAX_NAME:
            raise ValueError("a name of many characters")
        names.add(text)
        return Foreign(text)

    def call(callee: Any, arguments: Any) -> Any:
        nonlocal spent
        # One list can be handed to many calls.
        spent += len(arguments) + sum(len(part) for part in arguments if isinstance(part, list | tuple | dict))
        if spent > MAX_INSTRUCTIONS:
            raise ValueError("calls with more arguments than such a file has")
        return calls[callee.name](*arguments) if callee.name in calls else Foreign(callee.name)

    instructions: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(data)
    for opcode, argument, position in instructions:
        spent += 1
        if spent > MAX_INSTRUCTIONS:
            raise UserError(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions; save less in it")
        name = opcode.name
        if name in _LITERALS:
            stack.append(argument)
            continue
        match name:
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
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "BINPERSID" if persistent:
                stack[-1] = persistent(stack[-1])
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack[-1] = call(stack[-1], arguments)
            case "NEWOBJ_EX":
                del stack[-2:]
            case "OBJ":
                callee, *arguments = pop_to_mark()
                stack.append(call(callee, arguments))
            case "INST":
                stack.append(call(name_of(argument.replace(" ", ".")), pop_to_mark()))
            case "GLOBAL":
                stack.append(name_of(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                module, attribute = stack[-2:]
                stack[-2:] = [name_of(f"{module[:MAX_NAME]:s}.{attribute[:MAX_NAME]:s}")]
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
                stack.append(dictionary(zip(items[::2], items[1::2], strict=True)))
            case "EMPTY_SET":
                stack.append(Foreign("set"))
            case "FROZENSET":
                pop_to_mark()
                stack.append(Foreign("frozenset"))
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                items = pop_to_mark()
                _fill(stack[-1], items)
            case "APPEND" | "SETITEM":
                size = 1 if name == "APPEND" else 2
                items = stack[-size:]
                del stack[-size:]
                _fill(stack[-1], items)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(_CONSTANTS[name])
            case "POP":
                stack.pop()
            case "POP_MARK":
                pop_to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "STOP":
                return Pickle(stack.pop(), names, (position or 0) + 1)
            case "PROTO" | "FRAME":
                pass
            case _:
                raise ValueError(f"its pickle has the instruction {name}, which such files do not")
    raise AssertionError("genops ends with STOP or raises")


def _fill(container: Any, items: list[Any]) -> None:
    """Put items into a list, or keys and values into a dictionary; a placeholder keeps nothing."""
    if isinstance(container, dict):
        container.update(dictionary(zip(items[::2], items[1::2], strict=True)))
    elif isinstance(container, list):
        container.extend(items)
    elif not isinstance(container, Foreign):
        raise ValueError("its pickle fills what is no container")
