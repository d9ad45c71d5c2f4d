"""A part of the images of a source, as a network is evaluated on it. Imports no TensorFlow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet_tf.data.ordered import ordered_batches
from resnet_tf.data.pipeline import Batch, Source

# As many pixels as in 500 images of CIFAR; but never fewer images than make a kernel worth calling.
_PIXELS_AT_ONCE, _LEAST_AT_ONCE, _MOST_AT_ONCE = 500 * 32 * 32, 16, 500


@dataclass(frozen=True, eq=False)
class Part:
    """The images of a source at `indices`, all of one shape, as a network is evaluated on them."""

    source: Source
    indices: NDArray[np.int64]
    workers: int = 1

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def __getitem__(self, position: int) -> NDArray[np.uint8]:
        """Image at `position` of this part, uint8 (H, W, C)."""
        return self.source.image(int(self.indices[position]))

    @property
    def labels(self) -> NDArray[np.int32]:
        """The class of every image, int32 (N,)."""
        return self.source.labels[self.indices]

    def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        """All images and labels in order; as many at once as their size suggests where no `batch_size` is given."""
        return ordered_batches(
            self.source,
            self.indices,
            batch_size=batch_size or images_at_once(self[0].shape),
            workers=self.workers,
        )

    def share(self, index: int, count: int) -> "Part":
        """Every `count`-th image from number `index` on; the shares of all indices are the whole."""
        return Part(self.source, self.indices[index::count], self.workers)

    def first(self, count: int) -> "Part":
        """The first `count` images."""
        return Part(self.source, self.indices[:count], self.workers)

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """All images (N, H, W, C) and labels (N,) in memory."""
        return np.stack([self[position] for position in range(len(self))]), self.labels


def images_at_once(shape: Sequence[int]) -> int:
    """How many images of a shape (H, W, C) a network is evaluated on at once."""
    return max(_LEAST_AT_ONCE, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // (shape[0] * shape[1])))
