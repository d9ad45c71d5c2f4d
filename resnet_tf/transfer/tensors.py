"""A tensor in a file: its shape is known, its values are read when they are wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from resnet_tf.errors import UserError


@dataclass(frozen=True)
class StoredTensor:
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
