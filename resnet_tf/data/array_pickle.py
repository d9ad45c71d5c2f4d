"""A pickle reader that calls nothing of anyone else's, for dictionaries of numbers, bytes and uint8 arrays."""

import math
import pickle
from io import BytesIO
from typing import Any

import numpy as np

from resnet_tf.errors import UserError


class _Dtype:
    """Stands in for numpy.dtype: only a name, and only uint8 is taken up as one."""

    def __init__(self, code: object, *_: object) -> None:
        self.name = "uint8" if code in (b"u1", "u1") else "not uint8"

    def __setstate__(self, state: object) -> None:
        """Byte order and the like mean nothing for single bytes."""


class Array:
    """Stands in for numpy.ndarray: keeps what the pickle says, and allocates nothing on its word."""

    shape: tuple[int, ...] = ()
    dtype = "nothing"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Takes the state that numpy pickles: version, shape, dtype, column order, contents."""
        _, self.shape, dtype, self._by_column, self._content = state
        self.dtype = dtype.name
        if not isinstance(self.shape, tuple) or not all(type(n) is int and 0 <= n < 2**31 for n in self.shape):
            raise pickle.UnpicklingError("an array of no proper shape")
        if type(self._content) is not bytes or len(self._content) != math.prod(self.shape):
            raise pickle.UnpicklingError("an array whose bytes do not fill its shape")

    def pixels(self) -> np.ndarray:
        """The array, as a read-only view of the pickled bytes; for uint8 only."""
        return np.frombuffer(self._content, np.uint8).reshape(self.shape, order="F" if self._by_column else "C")


def _reconstruct(subtype: object, shape: object, code: object) -> Array:
    if (subtype, shape) != (Array, (0,)) or code not in (b"b", "b"):
        raise pickle.UnpicklingError("an array built in an unusual way")
    return Array()


class ArrayUnpickler(pickle.Unpickler):
    """Admits the handful of names that an array needs, as stand-ins; refuses all others before anything is called."""

    def __init__(self, raw: bytes, where: str) -> None:
        super().__init__(BytesIO(raw), encoding="bytes")
        self._where = where
        self._budget = 2 * len(raw)

    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in for a name; raises UserError for any that an array does not need."""
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
            admitted = {"_reconstruct": _reconstruct, "ndarray": Array, "dtype": _Dtype}
            if name in admitted:
                return admitted[name]
        raise UserError(
            f"{self._where} is refused, and nothing of it was run: it asks for {f'{module}.{name}'[:80]!r}, which no "
            "CIFAR file needs; fetch the official archive again"
        )

    def _encode(self, text: str, encoding: str) -> bytes:
        """How Python 3 writes bytes in old pickle protocols; bounded, since one text can be encoded many times."""
        self._budget -= len(text)
        if encoding not in ("latin1", b"latin1") or self._budget < 0:
            raise pickle.UnpicklingError("bytes written in an unusual way")
        return text.encode("latin1")
