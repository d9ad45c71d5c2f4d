"""OpenCV, imported in one place so that a missing system library gets one helpful message."""

from resnet_tf.errors import UserError

try:
    import cv2
except ImportError as error:
    raise UserError(
        f"OpenCV cannot be imported ({error}); either install the system libraries it needs "
        "(Debian/Ubuntu: apt-get install libgl1 libglib2.0-0 libxcb1) or swap the package "
        "(pip uninstall -y opencv-python && pip install opencv-python-headless)"
    ) from error

__all__ = ["cv2"]
