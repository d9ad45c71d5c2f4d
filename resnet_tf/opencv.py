"""OpenCV, imported in one place so that a missing system library gets one helpful message."""

import os

from resnet_tf.errors import UserError

# OpenCV reads this when it is imported, and checks a picture's size by it before it takes the memory.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))

try:
    import cv2
except ImportError as error:
    raise UserError(
        f"OpenCV cannot be imported ({error}); either install the system libraries it needs "
        "(Debian/Ubuntu: apt-get install libgl1 libglib2.0-0 libxcb1) or swap the package "
        "(pip uninstall -y opencv-python && pip install opencv-python-headless)"
    ) from error

__all__ = ["cv2"]
