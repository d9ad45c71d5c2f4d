"""The built-in data: ten classes of colored shapes that OpenCV draws from a seed, so nothing need be fetched."""

import numpy as np

from resnet_tf.data.dataset import Dataset, Split
from resnet_tf.data.image_io import cv2

SIZE = 32
# The outline is drawn on a finer grid and averaged down, which is what smooths its edges.
_FINE = 4
_CANVAS = SIZE * _FINE
# Degrees by which a shape leans to either side.
_TURN = 40
_TRAIN_STREAM, _TEST_STREAM = 0x7EA1, 0x7E57


def _regular(corners: int, inner: float = 1.0) -> np.ndarray:
    """Corners of a regular polygon in the unit circle; every other one at radius `inner`."""
    angles = np.arange(corners) * (2 * np.pi / corners)
    radii = np.where(np.arange(corners) % 2 == 0, 1.0, inner)
    return np.stack([np.sin(angles) * radii, -np.cos(angles) * radii], axis=1)


def _arc(radius: float, start: float, stop: float, center: float = 0.0) -> np.ndarray:
    """Points of an arc about (center, 0), angles in degrees."""
    angles = np.radians(np.linspace(start, stop, 28))
    return np.stack([center + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2], axis=1) / 16


_CROSS = [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
_ARROW = [(0, -1), (0.75, -0.1), (0.25, -0.1), (0.25, 1), (-0.25, 1), (-0.25, -0.1), (-0.75, -0.1)]
_HOURGLASS = [(-0.75, -0.9), (0.75, -0.9), (0.14, 0), (0.75, 0.9), (-0.75, 0.9), (-0.14, 0)]

# Every outline is its own mirror image and leans to both sides alike, so that a flipped image stays in its class.
# A second contour is a hole: cv2.fillPoly fills by the even-odd rule.
_OUTLINES: dict[str, list[np.ndarray]] = {
    "circle": [_arc(0.9, 0, 360)],
    "square": [_regular(4)],
    "triangle": [_regular(3)],
    "star": [_regular(10, inner=0.42)],
    "cross": [np.array(_CROSS) / 3],
    "ring": [_arc(0.95, 0, 360), _arc(0.5, 0, 360)],
    "crescent": [np.concatenate([_arc(1.0, 50, 310), _arc(0.84, 294, 66, center=0.3)])[:, ::-1]],
    "arrow": [np.array(_ARROW)],
    "hourglass": [np.array(_HOURGLASS)],
    "heart": [_heart()],
}
CLASS_NAMES = tuple(_OUTLINES)


def load_shapes(seed: int = 0, train_size: int = 10_000, test_size: int = 2_000) -> Dataset:
    """Draw the built-in data set: image i of a split depends on (seed, split, i) alone and has class i % 10."""
    train, test = _draw_split(seed, _TRAIN_STREAM, train_size), _draw_split(seed, _TEST_STREAM, test_size)
    return Dataset("shapes", "built-in", CLASS_NAMES, train, test)


def _draw_split(seed: int, stream: int, size: int) -> Split:
    labels = (np.arange(size) % len(CLASS_NAMES)).astype(np.int32)
    images = np.empty((size, SIZE, SIZE, 3), np.uint8)
    for i, label in enumerate(labels):
        images[i] = _draw_image(np.random.default_rng([seed, stream, i]), _OUTLINES[CLASS_NAMES[label]])
    return Split(images, labels)


def _draw_image(rng: np.random.Generator, outline: list[np.ndarray]) -> np.ndarray:
    """One (32, 32, 3) uint8 image: a textured shape on a textured ground, partly covered, with pixel noise."""
    ground, paint = _two_colors(rng)
    image = _texture(rng, ground)
    image = _blend(image, _texture(rng, paint), _shape_mask(rng, outline))
    image = _blend(image, _texture(rng, rng.uniform(0, 255, 3)), _cover_mask(rng))
    image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(3, 14))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _two_colors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ground and paint from one distribution, so that neither says anything of the class, but told apart."""
    while True:
        ground, paint = rng.uniform(0, 255, (2, 3))
        if np.linalg.norm(ground - paint) >= 110:
            return ground, paint


def _texture(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    cells = int(rng.integers(3, 9))
    blotches = rng.normal(0, 20, (cells, cells, 3)).astype(np.float32)
    return cv2.resize(blotches, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) + color.astype(np.float32)


def _shape_mask(rng: np.random.Generator, outline: list[np.ndarray]) -> np.ndarray:
    """The outline at a random place, size, angle and slight stretch, as (32, 32, 1) float32 coverage."""
    radius = rng.uniform(9.0, 13.5)
    reach = SIZE / 2 - radius
    center = SIZE / 2 + rng.uniform(-reach, reach, 2)
    angle = np.radians(rng.uniform(-_TURN, _TURN))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    stretch = radius * np.array([1.0, rng.uniform(0.85, 1.0)])
    points = [((contour * stretch) @ turn + center) * _FINE for contour in outline]
    return _coverage([np.rint(contour).astype(np.int32) for contour in points])


def _cover_mask(rng: np.random.Generator) -> np.ndarray:
    """A thin bar anywhere in the image, as (32, 32, 1) float32 coverage."""
    center = rng.uniform(4, SIZE - 4, 2)
    box = (tuple(center * _FINE), tuple(rng.uniform((1.5, 6), (4, 14)) * _FINE), float(rng.uniform(0, 180)))
    return _coverage([np.rint(cv2.boxPoints(box)).astype(np.int32)])


def _coverage(contours: list[np.ndarray]) -> np.ndarray:
    canvas = np.zeros((_CANVAS, _CANVAS), np.uint8)
    cv2.fillPoly(canvas, contours, 255)
    fine = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return (fine.astype(np.float32) / 255)[..., None]


def _blend(below: np.ndarray, above: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return below + (above - below) * mask
