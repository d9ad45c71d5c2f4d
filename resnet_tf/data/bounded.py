"""Read pickles and tar archives of strangers: nothing in them is executed or takes time and memory on their word."""

import bz2
import gzip
import lzma
import math
import pickle
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Any, ClassVar, cast

import numpy as np

from resnet_tf.errors import UserError


class _Dtype:
    """Stands in for numpy.dtype; of all dtypes only uint8 is told apart."""

    def __init__(self, code: object, *_: object) -> None:
        self.name = "uint8" if code in (b"u1", "u1") else "not uint8"

    def __setstate__(self, state: object) -> None:
        pass  # byte order and the like mean nothing for single bytes


class Array:
    """Stands in for numpy.ndarray: keeps the state that numpy pickles, and allocates nothing on its word."""

    shape: tuple[int, ...] = ()
    dtype = "nothing"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, dtype, self._by_column, self._content = state
        self.dtype = dtype.name
        if not isinstance(self.shape, tuple) or len(self.shape) > 8:
            raise pickle.UnpicklingError("an array of no proper shape")
        if not all(type(n) is int and 0 <= n < 2**31 for n in self.shape):
            raise pickle.UnpicklingError("an array of no proper shape")
        if type(self._content) is not bytes or len(self._content) != math.prod(self.shape):
            raise pickle.UnpicklingError("an array whose bytes do not fill its shape")

    def pixels(self) -> np.ndarray:
        return np.frombuffer(self._content, np.uint8).reshape(self.shape, order="F" if self._by_column else "C")


def _reconstruct(subtype: object, shape: object, code: object) -> Array:
    if (subtype, shape) != (Array, (0,)) or code not in (b"b", "b"):
        raise pickle.UnpicklingError("an array built in an unusual way")
    return Array()


class _CountedReads(BytesIO):
    """Bytes that can be read so many times: each instruction of a pickle, which may make an object, takes a read."""

    def __init__(self, raw: bytes, reads: int) -> None:
        super().__init__(raw)
        self._left = reads

    def read(self, size: int | None = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise pickle.UnpicklingError("more objects than such a file has")
        return super().read(size)


class ArrayUnpickler(pickle._Unpickler):
    """Names, numbers, bytes, lists, dicts and arrays of bytes, none of which takes time or memory on the file's word.

    `most_reads` bounds the objects, `most_text` the characters that are made bytes again. The unpickler in C allocates
    as the highest memo index says, and hashes whatever a file makes a key.
    """

    read: Any
    readline: Any
    stack: Any
    append: Any
    pop_mark: Any
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.POP, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE),
            *(pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT),
            *(pickle.MEMOIZE, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1),
            *(pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.FLOAT, pickle.BINFLOAT, pickle.STRING),
            *(pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8),
            *(pickle.SHORT_BINUNICODE, pickle.EMPTY_TUPLE, pickle.TUPLE),
            *(pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND),
            *(pickle.APPENDS, pickle.EMPTY_DICT),
        )
    }

    def __init__(self, raw: bytes, where: str, most_reads: int, most_text: int) -> None:
        super().__init__(_CountedReads(raw, most_reads), encoding="bytes")
        self._where, self._text_left = where, most_text

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
            admitted = {"_reconstruct": _reconstruct, "ndarray": Array, "dtype": _Dtype}
            if name in admitted:
                return admitted[name]
        raise UserError(
            f"{self._where} asks for {f'{module}.{name}'[:80]!r}, which no CIFAR file needs; nothing of it was run, "
            "fetch the official archive again"
        )

    def _encode(self, text: str, encoding: str) -> bytes:
        """How Python 3 writes bytes in old pickle protocols; bounded, since one text can be encoded many times."""
        self._text_left -= len(text)
        if encoding not in ("latin1", b"latin1") or self._text_left < 0:
            raise pickle.UnpicklingError("bytes written in an unusual way")
        return text.encode("latin1")

    def _load_text(self) -> None:
        text = self.read(int.from_bytes(self.read(4), "little"))
        # One character beyond Latin-1 makes all of them take two or four bytes.
        if len(text) > 2**16 and np.frombuffer(text, np.uint8).max() > 0xC3:
            raise pickle.UnpicklingError("a long text that is not Latin-1")
        self.append(text.decode("utf-8", "surrogatepass"))

    def _load_line(self) -> None:
        line = self.readline()[:-1]
        if len(line) > 2**26:
            raise pickle.UnpicklingError("a long text")
        self.append(line.decode("raw-unicode-escape"))

    def _skip_frame(self) -> None:
        self.read(8)

    def _set_items(self, pairs: list[Any]) -> None:
        # The hash of a tuple takes the time of all that it refers to, however often.
        if type(self.stack[-1]) is not dict or any(type(key) not in (bytes, str) for key in pairs[::2]):
            raise pickle.UnpicklingError("a dictionary with other keys than names")
        self.stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))

    def _set_item(self) -> None:
        pair = self.stack[-2:]
        del self.stack[-2:]
        self._set_items(pair)

    def _make_dict(self) -> None:
        pairs = self.pop_mark()
        self.append({})
        self._set_items(pairs)

    def _build(self) -> None:
        state = self.stack.pop()
        # Of any other object, this would change attributes.
        if type(self.stack[-1]) not in (Array, _Dtype):
            raise pickle.UnpicklingError("an object with a state that is no array")
        self.stack[-1].__setstate__(state)

    dispatch |= {
        pickle.FRAME[0]: _skip_frame,
        pickle.BINUNICODE[0]: _load_text,
        pickle.UNICODE[0]: _load_line,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: lambda self: self._set_items(self.pop_mark()),
        pickle.DICT[0]: _make_dict,
        pickle.BUILD[0]: _build,
    }


class BoundedFile:
    """What a tar archive is read from: tarfile believes the sizes in headers, which take memory and time here alone."""

    def __init__(self, file: IO[bytes], total: int) -> None:
        self._file, self._left = file, {"in all": total, "of headers": 2**21, "of long headers": 2**16}
        self.in_member = False
        self.tell = file.tell

    def _spend(self, what: str, size: int) -> None:
        self._left[what] -= size
        if self._left[what] < 0:
            raise tarfile.ReadError(f"more bytes {what} than such an archive has")

    def read(self, size: int) -> bytes:
        if not self.in_member:
            self._spend("of headers", size)
            # Some versions of tarfile search these in a time that grows with the square of their length.
            if size > tarfile.BLOCKSIZE:
                self._spend("of long headers", size if size <= 2048 else 2**30)
        self._spend("in all", size)
        return self._file.read(size)

    def seek(self, position: int) -> int:
        way = position - self.tell()
        self._spend("in all", way if way >= 0 else position)
        return self._file.seek(position)


def open_stream(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        start = file.read(6)
    for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\0", lzma)):
        if start.startswith(magic):
            return cast(IO[bytes], module.open(path))
    return path.open("rb")
