"""Sources of images that are not in memory as the network sees them: decoded from files, or framed on the fly."""

import numpy as np
from numpy.typing import NDArray

from resnet_tf.data.image_files import ImageFiles
from resnet_tf.data.pipeline import Source
from resnet_tf.errors import UserError
from resnet_tf.framing import Framing, frame
from resnet_tf.images import UnreadableImageError, read_image


class FileSource:
    """Image files, decoded whenever they are asked for; only paths and labels are in memory."""

    def __init__(self, files: ImageFiles, least: int | None = None) -> None:
        """Take the images of `files`; `least` is what `decode_image` says of it, None decodes in full."""
        self.files = files
        self.labels: NDArray[np.int32] = files.labels
        self._least = least

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decode image `index`, uint8 (H, W, 3) RGB, each of its own size.

        Raises UserError when the file cannot be decoded (any more).
        """
        path = self.files.paths[index]
        try:
            return read_image(path, least=self._least)
        except UnreadableImageError as error:
            raise UserError(
                f"{path} cannot be decoded ({error}), though it is among the images to use; mend it"
            ) from error


class FramedSource:
    """The images of another source, all cut and resized to one size when they are asked for."""

    def __init__(self, source: Source, framing: Framing) -> None:
        """Show the images of `source` as `framing` says."""
        self.labels: NDArray[np.int32] = source.labels
        self._source, self._framing = source, framing

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._source)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`, uint8 (framing.height, framing.width, C)."""
        return frame(self._source.image(index), self._framing)
