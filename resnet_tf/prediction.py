"""`predict()`: the likeliest classes of images, decoded ahead in threads and classified in batches."""

import dataclasses
import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from resnet_tf.config import AnyPrecision
from resnet_tf.data.image_folder import image_files
from resnet_tf.data.image_io import SUFFIXES, UnreadableImageError, read_image
from resnet_tf.data.transforms import ResizeCenterCrop
from resnet_tf.errors import UserError
from resnet_tf.fused import check_precision
from resnet_tf.inference import compiled_inference, warn_unscaled, with_scaling
from resnet_tf.models.foreign import check_classifier, output_type
from resnet_tf.pretrained.zoo import imagenet_classes
from resnet_tf.reports.metrics import log_softmax
from resnet_tf.saving import SIDE, open_model

BATCHES_AHEAD = 3
# What most ImageNet networks are tested with; smaller networks see the whole picture.
DEFAULT_RESIZE, DEFAULT_CROP = 256, 224
SMALL = 96

Image = Path | NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image.

    Attributes:
        file: path of the image, or "image 3" for the fourth array.
        indices: classes by index, likeliest first.
        names: their names.
        probabilities: their probabilities.
        wnids: their WordNet ids where they are ImageNet's, else None.
        unreadable: why there is no prediction, or None.
    """

    file: str
    indices: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    wnids: tuple[str | None, ...] = ()
    unreadable: str | None = None

    @property
    def label(self) -> str:
        """Name of the likeliest class."""
        return self.names[0]

    @property
    def probability(self) -> float:
        """Probability of the likeliest class."""
        return self.probabilities[0]

    def as_dict(self) -> dict[str, Any]:
        """The file and its classes (index, name, probability, for ImageNet wnid), likeliest first, for JSON."""
        columns = zip(self.indices, self.names, self.probabilities, self.wnids, strict=True)
        return {
            "file": self.file,
            "classes": [
                {"index": index, "name": name, **({} if wnid is None else {"wnid": wnid}), "probability": probability}
                for index, name, probability, wnid in columns
            ],
        }

    def __str__(self) -> str:
        """The file and its classes, a line each."""
        if self.unreadable is not None:
            return f"{self.file} is skipped: {self.unreadable}"
        likeliest = zip(self.names, self.probabilities, strict=True)
        return "\n".join([self.file, *(f"  {name} {probability:.3f}" for name, probability in likeliest)])

    def __repr__(self) -> str:
        what = self.unreadable or f"{self.label} {self.probability:.3f}"
        return f"<Prediction {self.file}: {what}>"


def predict(
    model: Any,
    images: Any,
    *,
    top: int = 5,
    resize: int | None = None,
    crop: int | None = None,
    batch_size: int = 32,
    mean: Any = None,
    std: Any = None,
    input_scale: float | None = None,
    precision: AnyPrecision = "float32",
    fold_bn: bool = False,
) -> list[Prediction]:
    """Classify images.

    Args:
        model: as in `evaluate`, or a network that torchvision publishes ImageNet weights for ("resnet50").
        images: a file, folder or pattern, an array uint8 (H, W, C) or (N, H, W, C), or a list of files and arrays.
        top: classes of each image, likeliest first.
        resize: pixels that the shorter side is resized to; None goes by the model.
        crop: side of the square cut from the center; None goes by the model.
        batch_size: images at once.
        mean, std, input_scale: scaling of the input of a model that does not do it itself, as in `evaluate`.
        precision: what it computes in: "float32", "mixed_bfloat16", "mixed_float16", or "auto", as in `fused_view`.
        fold_bn: fold batch normalization into convolutions first.

    Returns:
        A `Prediction` for each image, in order; of a file that cannot be read it says why.

    Raises:
        UserError: the model, a pattern or an argument is not as it must be.
    """
    found = find_inputs(images)
    opened = with_scaling(open_model(model, published=True), mean, std, input_scale)
    options: dict[str, Any] = {"top": top, "resize": resize, "crop": crop, "batch_size": batch_size}
    return list(iter_predictions(*opened, found, precision=precision, fold_bn=fold_bn, **options))


def find_inputs(images: Any) -> list[Image]:
    """Files and arrays from what a user names or hands over; each file once."""
    if isinstance(images, np.ndarray):
        if images.ndim == 3:
            images = images[None]
        if images.ndim != 4 or images.dtype != np.uint8:
            raise UserError(
                f"images is {images.dtype} {images.shape}; expected raw pixels uint8 (H, W, C) or (N, H, W, C)",
                argument="images",
            )
        return list(images)
    if isinstance(images, str | os.PathLike):
        return list(expand_patterns([os.fspath(images)]))
    found: dict[Any, Image] = {}
    for image in images:
        for item in find_inputs(image):
            found[item if isinstance(item, Path) else id(item)] = item
    return list(found.values())


def expand_patterns(patterns: Sequence[str]) -> list[Path]:
    """The files that names, folders (searched to any depth) and glob patterns stand for, each once, in order."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        if not pattern:
            raise UserError("an image has the empty name; name files, folders or patterns", argument="images")
        if Path(pattern).is_dir():
            files = sorted(map(Path, image_files(Path(pattern))))
        elif glob.has_magic(pattern) and not Path(pattern).exists():
            files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
        else:
            files = [Path(pattern)]
        if not files:
            raise UserError(f"{pattern} holds no image files ({', '.join(SUFFIXES)}); name files, folders or patterns")
        found.update(dict.fromkeys(files))
    return list(found)


def iter_predictions(
    model: keras.Model,
    sidecar: dict[str, Any],
    name: str,
    images: Sequence[Image],
    *,
    top: int = 5,
    resize: int | None = None,
    crop: int | None = None,
    batch_size: int = 32,
    precision: AnyPrecision = "float32",
    fold_bn: bool = False,
) -> Iterator[Prediction]:
    """Predictions as they come; see `predict`."""
    for argument, value in (("top", top), ("batch_size", batch_size), ("resize", resize), ("crop", crop)):
        if value is not None and value < 1:
            raise UserError(f"{argument}={value} is out of range; give 1 or more", argument=argument)
    check_precision(precision)
    check_classifier(model, name)
    shape = model.input_shape
    if shape[3] not in (1, 3):
        raise UserError(f"{name} takes images of {shape[3]} channels; only those of 1 or 3 will do")
    for image in images:
        if not isinstance(image, Path) and image.shape[2] != shape[3]:
            what = f"images has one of the shape {image.shape}"
            raise UserError(f"{what}, {name} takes (height, width, {shape[3]})", argument="images")
    warn_unscaled(model, sidecar, name)
    names, wnids = class_table(sidecar, model.output_shape[1])
    probabilities = probabilities_of(model, precision, fold_bn)
    transform = crop_of(shape, sidecar, resize, crop)
    for file, row in classify(images, probabilities, transform, channels=shape[3], batch_size=batch_size):
        if isinstance(row, UnreadableImageError):
            yield Prediction(file, unreadable=str(row))
            continue
        order = np.argsort(-row, kind="stable")[:top].tolist()
        yield Prediction(
            file,
            tuple(order),
            tuple(names[index] for index in order),
            tuple(float(row[index]) for index in order),
            tuple(wnids[index] for index in order),
        )


def probabilities_of(model: keras.Model, precision: AnyPrecision = "float32", fold_bn: bool = False) -> Any:
    """A compiled function from pixels (B, height, width, channels) uint8 to probabilities (B, classes)."""
    kind = output_type(model)
    forward = compiled_inference(model, precision, fold_bn)

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        outputs = np.asarray(forward(pixels))
        return np.exp(log_softmax(outputs)) if kind == "logits" else outputs

    return probabilities


def crop_of(
    shape: Sequence[int | None], sidecar: dict[str, Any], resize: int | None, crop: int | None
) -> ResizeCenterCrop:
    """Which part of a picture a model of input `shape` sees: as asked, as its sidecar says, or the default."""
    known = sidecar.get("preprocessing") or {}
    framing = (known.get("framing") if resize is None and crop is None else None) or {}
    default = crop or known.get("crop") or (known.get("shape") or [DEFAULT_CROP])[0] or DEFAULT_CROP
    height = framing.get("height") or crop or shape[1] or default
    width = framing.get("width") or crop or shape[2] or default
    if shape[1] not in (None, height) or shape[2] not in (None, width):
        what = f"the framing of {height}x{width} beside it" if framing else f"crop={crop}"
        takes = f"{shape[1]}x{shape[2]} pixels"
        raise UserError(f"{what} does not fit the model, which takes {takes}; leave it out", argument="crop")
    if max(height, width) not in SIDE:
        raise UserError(f"images of {height}x{width} are too large; allowed: {SIDE[-1]} pixels a side", argument="crop")
    if framing:
        return ResizeCenterCrop(**framing)
    larger = max(height, width)
    if resize is None:
        usual = larger if larger < SMALL else round(larger * DEFAULT_RESIZE / DEFAULT_CROP)
        resize = (known.get("resize") if crop is None else None) or usual
    if resize < larger:
        raise UserError(
            f"resize={resize} is smaller than the crop of {height}x{width}; give {larger} or more", argument="resize"
        )
    return ResizeCenterCrop(resize, height, width)


def class_table(sidecar: dict[str, Any], outputs: int) -> tuple[list[str], list[str | None]]:
    """Names and WordNet ids of the classes; without names in the sidecar, 1000 outputs are taken for ImageNet's."""
    imagenet = imagenet_classes() if outputs == 1000 else ()
    names = sidecar.get("class_names")
    if names is None:
        names = [known.name for known in imagenet] or [f"class {index}" for index in range(outputs)]
    if len(names) != outputs:
        raise UserError(f"the JSON file beside the model names {len(names)} classes, the model has {outputs}; fix it")
    wnids: list[str | None] = [None] * outputs
    for index, known in enumerate(imagenet):
        wnids[index] = known.wnid if known.name == names[index] else None
    return list(names), wnids


def classify(
    images: Sequence[Image],
    probabilities: Callable[[np.ndarray], np.ndarray],
    transform: ResizeCenterCrop,
    *,
    channels: int = 3,
    batch_size: int = 32,
    threads: int = 2,
) -> Iterator[tuple[str, Any]]:
    """Names of images with their probabilities (classes,), or why they are unreadable."""

    def load(image: Image) -> np.ndarray:
        return transform(read_image(image, channels) if isinstance(image, Path) else image)

    names = [str(image) if isinstance(image, Path) else f"image {index}" for index, image in enumerate(images)]
    loaded = _loaded_ahead(images, load, batch_size * BATCHES_AHEAD, threads)
    for batch in _batches(zip(names, loaded, strict=True), batch_size):
        readable = [pixels for _, pixels in batch if not isinstance(pixels, UnreadableImageError)]
        results = iter(np.asarray(probabilities(np.stack(readable))) if readable else ())
        for name, pixels in batch:
            yield name, pixels if isinstance(pixels, UnreadableImageError) else next(results)


def _loaded_ahead(
    images: Iterable[Image], load: Callable[[Image], np.ndarray], ahead: int, threads: int
) -> Iterator[Any]:
    """Pixels, or why there are none, at most `ahead` of them loaded and waiting."""
    waiting: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for image in images:
            waiting.append(pool.submit(load, image))
            if len(waiting) > ahead:
                yield _outcome(waiting.popleft())
        while waiting:
            yield _outcome(waiting.popleft())


def _outcome(loading: Future[np.ndarray]) -> np.ndarray | UnreadableImageError:
    try:
        return loading.result()
    except UnreadableImageError as error:
        return error


def _batches(items: Iterable[tuple[str, Any]], size: int) -> Iterator[list[tuple[str, Any]]]:
    """Groups of items of which `size` have pixels; the last may have fewer."""
    batch: list[tuple[str, Any]] = []
    readable = 0
    for item in items:
        batch.append(item)
        readable += not isinstance(item[1], UnreadableImageError)
        if readable == size:
            yield batch
            batch, readable = [], 0
    if batch:
        yield batch
