"""What a saved model is scored on, and its score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from resnet_tf.cli.inference import compiled_inference
from resnet_tf.cli.material import part_to_test
from resnet_tf.cli.predict import framing_of
from resnet_tf.data.dataset import is_image_dataset, load_dataset
from resnet_tf.data.image_check import images_to_test
from resnet_tf.data.image_ops import ResizeCenterCrop
from resnet_tf.data.loader import Subset
from resnet_tf.errors import UserError, some
from resnet_tf.inference import EvalMetrics, output_type, score_batches
from resnet_tf.reports.metrics import log_softmax


@dataclass(frozen=True, eq=False)
class LabelledDataset:
    """Images to score a model on: the data set's name, what they are in words, their classes, and they themselves."""

    name: str
    source: str
    class_names: Sequence[str]
    part: Subset


def find_tests(model: keras.Model, sidecar: dict[str, Any], dataset: str, arguments: Any) -> LabelledDataset:
    """The test images of a data set as a model sees them.

    Raises:
        UserError: there are none, they cannot be used, or they are of other classes than the model's.
    """
    names = sidecar.get("class_names")
    known = (sidecar.get("preprocessing") or {}).get("framing")
    framing = None if known is None else ResizeCenterCrop(**known)
    if not is_image_dataset(dataset):
        data = load_dataset(dataset, arguments.data_dir)
        if names is not None and list(names) != list(data.class_names):
            raise UserError(
                f"{arguments.model} knows the classes {some(names)}; {dataset} has {some(data.class_names)}; evaluate "
                "it on what it was trained on (leave --dataset out), or on own images of its classes"
            )
        return LabelledDataset(dataset, data.source, data.class_names, part_to_test(data, framing))
    on_bad = arguments.on_bad_image or sidecar.get("on_bad_image", "stop")
    files = images_to_test(dataset, arguments.dataset is not None, on_bad, names)
    framing = framing or framing_of(model.input_shape, sidecar, None, None)
    return LabelledDataset(dataset, "own images", files.class_names, part_to_test(files, framing))


def check_input(model: keras.Model, path: Path, name: str, size: Sequence[int]) -> None:
    """Find out whether a model takes the images of a data set, which are of `size` (H, W, C).

    Raises:
        UserError: it does not.
    """
    shape = model.input_shape
    if (
        not isinstance(shape, tuple)
        or len(shape) != 4
        or any(side not in (None, given) for side, given in zip(shape[1:], size, strict=True))
    ):
        raise UserError(f"{path} takes images of the shape {shape}, {name} has {tuple(size)}")


def score_model(
    model: keras.Model,
    path: Path,
    tests: LabelledDataset,
    batch_size: int | None = None,
    log: Callable[[str], None] | None = None,
    keep: Callable[[np.ndarray], None] | None = None,
    precision: str = "float32",
    fold_bn: bool = False,
) -> EvalMetrics:
    """Score a model, which was loaded from `path`.

    `log` is told how the output is taken, `keep` gets the probabilities (B, classes) batch by batch; `precision` and
    `fold_bn` are those of `compiled_inference`.

    Raises:
        UserError: its input or output does not fit the data.
    """
    check_input(model, path, tests.name, tests.part[0].shape)
    kind = output_type(model)
    if log is not None:
        log(f"the model's output is taken as {kind}")
    compiled = compiled_inference(model, precision, fold_bn)

    def forward(batch: np.ndarray) -> np.ndarray:
        outputs = np.asarray(compiled(batch))
        if keep is not None:
            keep(np.exp(log_softmax(outputs)) if kind == "logits" else outputs)
        return outputs

    return score_batches(forward, tests.part.batches(batch_size), kind=kind, classes=len(tests.class_names))
