"""From whatever a user trains on to training data: batches to train on, and images to validate and test on."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from resnet_tf.config import TrainConfig, default_augmentation, make_config
from resnet_tf.data.cifar import load_dataset
from resnet_tf.data.custom_transform import check_transform, is_function_name, load_function, name_of
from resnet_tf.data.dataset import (
    Channels,
    Dataset,
    Split,
    class_indices,
    fingerprint,
    is_image_dataset,
    stratified_split,
)
from resnet_tf.data.image_check import ImageDataset, images_to_test, open_image_dataset
from resnet_tf.data.loader import (
    ArraySource,
    DataSource,
    FileSource,
    ResizedSource,
    Subset,
    TrainLoader,
    source_statistics,
)
from resnet_tf.data.tf_batches import TfData, TfSubset
from resnet_tf.data.transforms import (
    PadCropFlip,
    ResizeCenterCrop,
    Transform,
    TransformPair,
    custom_transforms,
    make_transforms,
    mean_fill,
)
from resnet_tf.errors import UserError
from resnet_tf.recipes import Recipe
from resnet_tf.reports.plots import draw_preview

RawData = Dataset | ImageDataset | TfData

_WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Data in the form in which a run takes them."""

    name: str
    source: str  # in words, which variant they are
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # (H, W, C) that the network sees
    images: DataSource  # what is trained on, before `transform`
    transform: Transform
    train: Subset  # as they are evaluated
    validation: Any  # may be empty
    test: Any  # may be None
    mean: Channels  # of the training part, 0-255
    std: Channels
    crop: ResizeCenterCrop | None  # how evaluation frames a picture, if it does
    workers: int

    exact_resume = True
    image_dtype = tf.uint8

    def loader(self, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1), microbatches: int = 1) -> TrainLoader:
        """Shuffled and augmented batches to train on, or a worker's `shard` (index, count) of each."""
        return TrainLoader(
            self.images,
            self.transform,
            batch_size=batch_size,
            seed=seed,
            indices=self.train.indices,
            workers=self.workers,
            shard=shard,
            microbatches=microbatches,
        )


@dataclass(frozen=True, eq=False)
class DataArguments:
    """What a user hands over to train, validate and test on, as `train()` takes it.

    `outputs` is how many a given model has: so many classes have data whose classes nobody names.
    """

    data: Any
    validation: Any = None
    test: Any = None
    class_names: Sequence[str] | None = None
    steps_per_epoch: int | None = None
    outputs: int = 0


def open_data(given: DataArguments, config: TrainConfig, log: Callable[[str], None]) -> RawData:
    data, class_names = given.data, given.class_names
    if isinstance(data, tf.data.Dataset):
        return TfData(data, class_names, given.steps_per_epoch, given.outputs)
    if given.steps_per_epoch is not None:
        raise UserError("steps_per_epoch=… goes with a tf.data.Dataset; leave it out", argument="steps_per_epoch")
    if isinstance(data, str | Path):
        if is_image_dataset(str(data)):
            return open_image_dataset(str(data), config.on_bad_image, log)
        return load_dataset(str(data), config.data_dir)
    return as_dataset(data, class_names, given.outputs)


def as_dataset(data: Any, class_names: Sequence[str] | None = None, outputs: int = 0) -> Dataset:
    """A `Dataset`, or arrays to train on as one; raises UserError where they are not what the networks take."""
    if not isinstance(data, Dataset):
        train = as_split(data, "data")
        one_hot = () if isinstance(data, Split) else np.shape(data[1])[1:]
        classes = max(int(train.labels.max(initial=0)) + 1, outputs, *one_hot)
        names = [f"class {index}" for index in range(classes)] if class_names is None else class_names
        data = Dataset("arrays", "arrays", tuple(map(str, names)), train)
    given = {name: getattr(data, name) for name in ("train", "test", "validation")}
    splits = {name: as_split(split, "data") for name, split in given.items() if split is not None}
    top = max(int(split.labels.max(initial=0)) for split in splits.values())
    if top >= len(data.class_names):
        message = f"class_names has {len(data.class_names)} names; the labels go up to {top}"
        raise UserError(message, argument="class_names")
    return replace(data, class_names=tuple(data.class_names), **splits)


def as_split(data: Any, argument: str) -> Split:
    """Images and labels from a tuple of arrays, checked; raises UserError where they are not what the networks take."""
    if isinstance(data, Split):
        data = data.images, data.labels
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise UserError(
            f"{argument} is {type(data).__name__}; expected (images, labels), a resnet_tf.Dataset, a tf.data.Dataset "
            "of (image batch, label batch), or a name such as 'cifar10', 'folder:PATH' or 'list:FILE'",
            argument=argument,
        )

    def refuse(found: str, expected: str) -> NoReturn:
        raise UserError(f"{argument} has {found}; expected {expected}", argument=argument)

    images = np.asarray(data[0])
    if images.ndim != 4:
        refuse(f"images of shape {images.shape}", "(N, H, W, C)")
    if images.dtype != np.uint8:
        if images.size and not (np.all(images == np.rint(images)) and images.min() >= 0 and images.max() <= 255):
            refuse(
                f"images of dtype {images.dtype} from {images.min():g} to {images.max():g}",
                "raw pixels 0-255 in uint8, as the network normalizes them itself: (255 * images).astype('uint8')",
            )
        images = images.astype(np.uint8)
    expected = f"integers ({len(images)},) or one-hot ({len(images)}, classes)"
    try:
        labels = class_indices(data[1])
    except ValueError as error:
        refuse(str(error), expected)
    if len(labels) != len(images):
        refuse(f"{len(labels)} labels for {len(images)} images", expected)
    if labels.size and labels.min() < 0:
        refuse(f"the label {labels.min()}", "0 to classes - 1")
    return Split(images, labels)


def fingerprint_of(data: RawData) -> str:
    return fingerprint(data.train) if isinstance(data, Dataset) else data.fingerprint


def prepare_data(
    data: RawData,
    config: TrainConfig,
    statistics: tuple[Channels, Channels] | None = None,
    given: DataArguments = DataArguments(None),
) -> "TrainingData | TfData":
    """Split images, see how they are varied and framed, and take their statistics, where none are given.

    What `given` has for validation and test replaces the data's own; test=False leaves it out.
    """
    validation, test = given.validation, given.test
    if isinstance(data, TfData):
        return data.prepared(statistics, _tf_subset(validation, data, "validation"), _tf_subset(test, data, "test"))
    if isinstance(data, ImageDataset):
        prepared = _from_files(data, config, statistics, validation)
    else:
        prepared = _from_arrays(data, config, statistics, validation)
    if test is None:
        return prepared
    subset = None if test is False else _given_subset(test, "test", prepared.crop, prepared.class_names)
    return dataclasses.replace(prepared, test=subset)


def _tf_subset(given: Any, data: TfData, argument: str) -> Any:
    return None if given is None or given is False else _given_subset(given, argument, None, data.class_names)


def _given_subset(
    given: Any, argument: str, crop: ResizeCenterCrop | None, class_names: Sequence[str]
) -> "Subset | TfSubset":
    if isinstance(given, tf.data.Dataset):
        return TfSubset(given)
    if isinstance(given, str) and is_image_dataset(given):
        files = images_to_test(given, True, "stop", class_names)
        if crop is None:
            raise UserError(f"{argument}={given!r} goes with input_size=PIXELS", argument=argument)
        return subset_to_test(files, crop)
    return _all_of(given.train if isinstance(given, Dataset) else as_split(given, argument), crop)


def _all_of(split: Split, crop: ResizeCenterCrop | None, workers: int = 1) -> Subset:
    return Subset(resized(ArraySource(split.images, split.labels), crop), np.arange(len(split)), workers)


def _from_arrays(
    data: Dataset, config: TrainConfig, statistics: tuple[Channels, Channels] | None, given: Any
) -> TrainingData:
    validation_size = config.recipe.validation_size
    given = data.validation if given is None else given
    train, held_out = stratified_split(data.train.labels, 0 if given is not None else validation_size, config.seed)
    images = ArraySource(data.train.images, data.train.labels)
    # Of the pixels as they are stored: enlarging them on the fly changes next to nothing.
    mean, std = statistics or source_statistics(images, train)
    transform: Transform = pad_crop_flip(config.recipe, mean)
    shape, crop, workers = data.train.images.shape[1:], None, 1
    if config.input_size is not None or config.augment is not None:
        size = config.input_size or max(shape[:2])
        pair = _custom(config, size, "none", images)
        pair = pair or make_transforms(config.augment or "cifar", size, pad_crop_flip(config.recipe, mean))
        transform, crop, workers = pair.train, pair.eval, _WORKERS
        shape = (size, size, shape[2])
    seen = resized(images, crop)
    validation: Any = Subset(seen, held_out, workers)
    if given is not None:
        validation = _given_subset(given, "validation", crop, data.class_names)
    test = None if data.test is None else _all_of(data.test, crop, workers)
    about = (data.name, data.source, data.class_names, shape)
    return TrainingData(
        *about, images, transform, Subset(seen, train, workers), validation, test, mean, std, crop, workers
    )


def _from_files(
    data: ImageDataset, config: TrainConfig, statistics: tuple[Channels, Channels] | None, given: Any
) -> TrainingData:
    size, recipe = config.input_size, config.recipe
    assert size is not None
    images = FileSource(data.files["train"])
    custom = _custom(config, size, default_augmentation(config.model), images)
    crop = (custom or make_transforms(config.augment, size)).eval
    subsets: dict[str, Any] = {split: subset_to_test(files, crop) for split, files in data.files.items()}
    if given is not None:
        subsets["validation"] = _given_subset(given, "validation", crop, data.class_names)
    elif "validation" not in subsets:
        train, held_out = stratified_split(data.files["train"].labels, recipe.validation_size, config.seed)
        seen = subsets["train"].source
        subsets |= {"train": Subset(seen, train, _WORKERS), "validation": Subset(seen, held_out, _WORKERS)}
    train = subsets["train"]
    mean, std = statistics or source_statistics(train.source, train.indices, _WORKERS)
    pair = custom or make_transforms(config.augment, size, pad_crop_flip(recipe, mean))
    images = FileSource(data.files["train"], pair.min_side)
    about = (data.name, data.source, data.class_names, (size, size, 3))
    return TrainingData(
        *about, images, pair.train, train, subsets["validation"], subsets.get("test"), mean, std, crop, _WORKERS
    )


def _custom(config: TrainConfig, size: int, eval_as: str, images: DataSource) -> TransformPair | None:
    """The augmentation of a user's function, tried on the first image; None where `augment` is no function."""
    if callable(config.augment):
        name, function = getattr(config.augment, "__name__", "augment"), config.augment
    elif is_function_name(config.augment):
        name, function = config.augment, load_function(config.augment)
    else:
        return None
    made = custom_transforms(function, size, eval_as)
    check_transform(name, made.train, images.image(0))
    return made


def resized(source: DataSource, crop: ResizeCenterCrop | None) -> DataSource:
    return source if crop is None else ResizedSource(source, crop)


def subset_to_test(data: Any, crop: ResizeCenterCrop | None) -> Subset:
    """The test images of a data set in memory, or files to test on, framed."""
    if isinstance(data, Dataset):
        assert data.test is not None
        return _all_of(data.test, crop)
    return Subset(resized(FileSource(data), crop), np.arange(len(data)), _WORKERS)


def pad_crop_flip(recipe: Recipe, mean: Sequence[float]) -> PadCropFlip:
    return PadCropFlip(
        recipe.pad,
        mode="reflect" if recipe.pad_mode == "reflect" else "constant",
        fill=mean_fill(mean) if recipe.pad_mode == "mean" else (0,),
    )


def preview(data: Any = "cifar10", *, count: int = 16, class_names: Sequence[str] | None = None, **options: Any) -> Any:
    """Draw the first images of a training as the network sees them: framed as in evaluation, and varied below.

    Args:
        data: what `train` takes, but a tf.data.Dataset, which this package does not vary.
        count: number of images.
        class_names: names of the classes where the data has none.
        **options: those of `train` that concern images: augment, input_size, data_dir, on_bad_image, seed, pad, …, and
            model, by which it chooses augmentation and size of files.

    Returns:
        A matplotlib figure, to be shown or saved: `figure.savefig("grid.png")`.

    Raises:
        UserError: an argument or the data is not as it must be, or matplotlib is not installed.
    """
    if count < 1:
        raise UserError(f"count={count} is out of range; give 1 or more", argument="count")
    if isinstance(data, tf.data.Dataset):
        raise UserError("a tf.data.Dataset is trained on as it is; draw its own batches", argument="data")
    named = isinstance(data, str | Path)
    config = make_config(dataset=str(data) if named else "arrays", data_given=not named, **options)
    raw = open_data(DataArguments(data, class_names=class_names), config, lambda line: None)
    # Of the statistics, only padding with the mean needs any, and they take a pass over all images.
    unused = None if config.recipe.pad_mode == "mean" else ((0.0,) * 3, (1.0,) * 3)
    prepared: Any = prepare_data(raw, config, unused)
    loader = prepared.loader(min(count, len(prepared.train)), config.seed)
    indices, (varied, labels) = loader.batch_indices(0)[0], loader.batch(0)
    framed = [prepared.train.source.image(index) for index in indices.tolist()]
    height, width, _ = prepared.shape
    augment = name_of(config.augment) or "cifar"
    title = f"{prepared.name}: {width}×{height} pixels as evaluated, and below as trained on (augment {augment})"
    return draw_preview(framed, varied, [prepared.class_names[label] for label in labels], title)
