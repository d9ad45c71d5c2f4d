"""Put the final model of a finished run into the package, and write the model card: `python -m tools.weights RUN`."""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_tf.cli.main import run_command
from resnet_tf.errors import UserError
from resnet_tf.files import sha256_of, write_json, write_text
from resnet_tf.pretrained import zoo as shipped
from resnet_tf.process import load_tensorflow
from resnet_tf.reports.runs import COMMAND, overrides, read_run, shortcut_of
from resnet_tf.saving import model_path, read_sidecar

CARD = "README.md"
CHECKED = 4  # images whose logits go with the weights

_NONE = """# Weights

This version comes with no weights.
"""
_START = """# Weights

Written by `python -m tools.weights` from the JSON files beside it. The models are plain Keras models that take raw RGB
pixels (0–255, 32 × 32) and return logits."""

_LIMITS = """\
**Limits.** The network knows ten kinds of things in pictures of 32 × 32 pixels, and puts every other picture into one
of them too; its probabilities are not calibrated. The test images were read once, by the report of the finished run;
the last step was taken, not the best one. Nothing is known of its behavior on other pictures."""
_JPEG = """\
**Data.** Training and test images are those of a copy of CIFAR-10 that went through JPEG once (quality 75): the
accuracy is some points below that of such a network on the original, and is not comparable with published ones."""


def ship(run: Path) -> shipped.PretrainedEntry:
    """Copy the final model of a finished run into the package, with what is to be known of it.

    Raises:
        UserError: the run is not finished.
    """
    settings, report = read_run(run)
    if report is None or not (run / COMMAND).is_file():
        raise UserError(f"{run} is not finished, or lacks {COMMAND}; run its command again first")
    model = model_path(run, best=False)
    sidecar = read_sidecar(model)
    name = f"{settings['model']}-{settings['dataset']}"
    shipped.FOLDER.mkdir(exist_ok=True)
    target = shipped.FOLDER / f"{name}.keras"
    shutil.copyfile(model, target)
    about = {
        **sidecar,
        "builder": {
            **{key.removeprefix("builder."): settings[key] for key in settings if key.startswith("builder.")},
            "shortcut": shortcut_of(settings),
            "classes": len(sidecar["class_names"]),
        },
        "training": {
            "command": (run / COMMAND).read_text(encoding="utf-8").strip(),
            "changes": list(overrides(settings)),
            "seed": settings["seed"],
            "precision": settings["precision"],
            "iterations": report["iterations"],
            "train_images": report["train_images"],
            "validation_images": report["validation_images"],
            "seconds": report["training"]["seconds"],
            "images_per_second": report["training"]["median_images_per_second"],
            "device": report["device"],
            "versions": report["versions"],
        },
        "parameters": report["parameters"],
        "sha256": sha256_of(target),
        "logits": logits_of(target),
    }
    write_json(target.with_suffix(".json"), about)
    return shipped.entries()[f"{settings['model']}:{settings['dataset']}"]


def logits_of(path: Path) -> list[list[float]]:
    """What a saved model says of the first images of the built-in test data, (CHECKED, classes)."""
    load_tensorflow()
    import keras

    from resnet_tf.data.shapes import load_shapes

    model = keras.models.load_model(path, compile=False)
    height, width = model.input_shape[1:3]
    tests = load_shapes(train_size=1, test_size=CHECKED).test
    assert tests is not None
    images = tests.images[:, :height, :width]
    return [[round(float(value), 5) for value in row] for row in model(images, training=False).numpy()]


def card() -> str:
    """The model card of everything that ships, Markdown."""
    known = shipped.entries().values()
    if not known:
        return _NONE
    return "\n\n".join([_START, *(_describe(entry) for entry in known)]) + "\n"


def shipped_table() -> str:
    """What ships, for the README."""
    known = shipped.entries().values()
    if not known:
        return (
            "This version comes with no weights of its own; `import-weights` and `train --weights` take published ones."
        )
    rows = []
    for entry in known:
        test = entry.about["metrics"]["test"]
        accuracy = f"{100 * test['top1']:.2f} % ({entry.about['dataset']}, {entry.about['data_source']})"
        rows.append(f'| `{entry.text}` | `build_model("{entry.network}", weights="{entry.name}")` | {accuracy} |')
    card_link = "[Model card](resnet_tf/weights/README.md)."
    head = "| for `evaluate`, `predict`, `export`, `train --weights` | in Python | test accuracy |\n|---|---|---|"
    return "\n".join([head, *rows]) + f"\n\n{card_link}"


def _describe(entry: shipped.PretrainedEntry) -> str:
    about = entry.about
    training, test, builder = about["training"], about["metrics"]["test"], about["builder"]
    correct = round(test["top1"] * test["images"])
    recipe = ", ".join([f"`{about['recipe']['name']}`", *training["changes"]])
    rows: list[tuple[str, str]] = [
        ("network", f"{entry.network}, {about['parameters']:,} parameters"),
        ("built with", ", ".join(f"{key}={value!r}" for key, value in builder.items())),
        ("data", f"{about['dataset']}, {about['data_source']}"),
        ("split", f"{training['train_images']:,} to train on, {training['validation_images']:,} to validate on"),
        ("recipe", f"{recipe}, {training['iterations']:,} iterations, seed {training['seed']}"),
        ("precision", f"{training['precision']} in training; the file is float32"),
        ("test accuracy", f"{100 * test['top1']:.2f} % ({correct:,} of {test['images']:,} images), last step"),
        ("test loss, top-5", f"{test['loss']:.4f}, {100 * test['top5']:.2f} %"),
        ("took", f"{training['seconds'] / 3600:.1f} hours on {training['device']}"),
        ("versions", ", ".join(f"{key} {value}" for key, value in training["versions"].items())),
        ("file", f"[{entry.path.name}]({entry.path.name}), SHA-256 `{about['sha256']}`"),
    ]
    shares = zip(about["class_names"], test["per_class"], strict=True)
    classes = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares)
    table = "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])
    limits = f"{_JPEG}\n\n{_LIMITS}" if about["data_source"] == "JPEG copy" else _LIMITS
    return f"""## {entry.text}

{table}

By class: {classes}.

{limits}

```sh
resnet-tf evaluate {entry.text} --data-dir DIR     # the numbers above
resnet-tf predict {entry.text} photo.jpg
{training["command"]}
```

```python
import resnet_tf

model = resnet_tf.build_model("{entry.network}", weights="{entry.name}")
```"""


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Ship the runs that are named, and write the card of all that ships."""
    parser = argparse.ArgumentParser(prog="python -m tools.weights", description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folder of a finished run; none only writes the card")
    made = [ship(Path(run)) for run in parser.parse_args(argv).runs]
    for entry in made:
        print(f"{entry.text}: {entry.path} ({entry.path.stat().st_size / 1e6:.2f} MB)")
    shipped.FOLDER.mkdir(exist_ok=True)
    write_text(shipped.FOLDER / CARD, card())
    print(json.dumps(list(shipped.entries())))
    return {"shipped": list(shipped.entries())}


if __name__ == "__main__":
    import sys

    raise SystemExit(run_command(main, sys.argv[1:]))
