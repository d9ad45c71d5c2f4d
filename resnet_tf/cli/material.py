"""What a run works on: images to train on, to validate on and to test on, and how the network sees them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from resnet_tf.cli.request import Request, default_augmentation
from resnet_tf.data.custom_transform import check_transform, is_function_name, load_function
from resnet_tf.data.dataset import (
    Dataset,
    channel_statistics,
    fingerprint,
    is_image_dataset,
    load_dataset,
    stratified_split,
)
from resnet_tf.data.image_check import ImageDataset, open_image_dataset
from resnet_tf.data.image_ops import ResizeCenterCrop
from resnet_tf.data.loader import (
    ArraySource,
    DataSource,
    FileSource,
    ResizedSource,
    Subset,
    TrainLoader,
    source_statistics,
)
from resnet_tf.data.transforms import (
    PadCropFlip,
    Transform,
    TransformPair,
    custom_transforms,
    make_transforms,
    mean_fill,
)
from resnet_tf.recipes import Recipe

if TYPE_CHECKING:
    from resnet_tf.data.image_folder import ImageFiles

Channels = tuple[float, ...]

_WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, eq=False)
class Material:
    """Data in the form in which a run takes them.

    Attributes:
        name: what `--dataset` says.
        source: in words, which variant or whose images they are.
        class_names: the classes in the order of their labels.
        shape: (H, W, C) of what the network sees.
        pictures: what is trained on, as it comes before the augmentation, by the indices of `train`.
        policy: the augmentation.
        train: the training images as they are evaluated.
        validation: the validation images; may be none.
        test: the test images, or None where there are none.
        mean: of the channels of what is trained on, 0-255 units.
        std: likewise their standard deviation.
        framing: which part of a picture the network sees in evaluation, None where pictures are taken as they are.
        workers: threads that prepare batches.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    pictures: DataSource
    policy: Transform
    train: Subset
    validation: Subset
    test: Subset | None
    mean: Channels
    std: Channels
    framing: ResizeCenterCrop | None
    workers: int

    def batches(self, batch_size: int, seed: int, share: tuple[int, int] = (0, 1), parts: int = 1) -> TrainLoader:
        """Shuffled and augmented batches to train on, or a worker's `share` (index, count) of each.

        Raises:
            UserError: there are too few images for a batch.
        """
        return TrainLoader(
            self.pictures,
            self.policy,
            batch_size=batch_size,
            seed=seed,
            indices=self.train.indices,
            workers=self.workers,
            shard=share,
            microbatches=parts,
        )


def open_images(request: Request) -> Dataset | ImageDataset:
    """Find or load the images that a request names.

    Raises:
        UserError: they are not there, or cannot be used.
    """
    if is_image_dataset(request.dataset):
        return open_image_dataset(request.dataset, request.on_bad_image, print)
    return load_dataset(request.dataset, request.data_dir)


def fingerprint_of(images: Dataset | ImageDataset) -> str:
    """A digest of what is trained on."""
    return images.fingerprint if isinstance(images, ImageDataset) else fingerprint(images.train)


def make_material(
    images: Dataset | ImageDataset, request: Request, statistics: tuple[Channels, Channels] | None = None
) -> Material:
    """Split images, see how they are varied and framed, and take their statistics.

    Args:
        images: what `open_images` found.
        request: gives split, augmentation and size.
        statistics: mean and standard deviation to normalize with, None takes those of the training part.

    Raises:
        UserError: the split, the size or the augmentation does not make sense.
    """
    if isinstance(images, ImageDataset):
        return _from_files(images, request, statistics)
    return _from_memory(images, request, statistics)


def _from_memory(data: Dataset, request: Request, statistics: tuple[Channels, Channels] | None) -> Material:
    train, validation = stratified_split(data.train.labels, request.recipe.validation_size, request.seed)
    # Of the pixels as they are stored: enlarging them on the fly changes next to nothing.
    mean, std = statistics or channel_statistics(data.train.images[train])
    pictures, tests = (ArraySource(part.images, part.labels) for part in (data.train, data.test))
    policy: Transform = _pad_crop_flip(request.recipe, mean)
    shape, framing, workers = data.train.images.shape[1:], None, 1
    if request.input_size is not None or request.augment is not None:
        size = request.input_size or max(shape[:2])
        chosen = _own_augmentation(request.augment, size, "none", pictures) or make_transforms(
            request.augment or "cifar", size, _pad_crop_flip(request.recipe, mean)
        )
        policy, framing, workers = chosen.train, chosen.eval, _WORKERS
        shape = (size, size, shape[2])
    return Material(
        data.name,
        data.source,
        data.class_names,
        shape,
        pictures,
        policy,
        Subset(framed(pictures, framing), train, workers),
        Subset(framed(pictures, framing), validation, workers),
        Subset(framed(tests, framing), np.arange(len(data.test)), workers),
        mean,
        std,
        framing,
        workers,
    )


def _from_files(own: ImageDataset, request: Request, statistics: tuple[Channels, Channels] | None) -> Material:
    name, size, recipe = request.augment, request.input_size, request.recipe
    assert name is not None
    assert size is not None
    pictures = FileSource(own.files["train"])
    chosen = _own_augmentation(name, size, default_augmentation(request.model), pictures)
    framing = (chosen or make_transforms(name, size)).eval
    seen = {split: ResizedSource(FileSource(files), framing) for split, files in own.files.items()}
    everything = {split: np.arange(len(files)) for split, files in own.files.items()}
    if "validation" in own.files:
        train, validation = everything["train"], Subset(seen["validation"], everything["validation"], _WORKERS)
    else:
        train, held_out = stratified_split(own.files["train"].labels, recipe.validation_size, request.seed)
        validation = Subset(seen["train"], held_out, _WORKERS)
    mean, std = statistics or source_statistics(seen["train"], train, _WORKERS)
    chosen = chosen or make_transforms(name, size, _pad_crop_flip(recipe, mean))
    return Material(
        own.name,
        own.source,
        own.class_names,
        (size, size, 3),
        FileSource(own.files["train"], chosen.min_side),
        chosen.train,
        Subset(seen["train"], train, _WORKERS),
        validation,
        Subset(seen["test"], everything["test"], _WORKERS) if "test" in seen else None,
        mean,
        std,
        framing,
        _WORKERS,
    )


def _own_augmentation(name: str | None, size: int, framing_of: str, pictures: DataSource) -> TransformPair | None:
    """The augmentation of a user's function, tried on the first of the pictures; None where the name is no such.

    Raises:
        UserError: it does not work.
    """
    if name is None or not is_function_name(name):
        return None
    made = custom_transforms(load_function(name), size, framing_of)
    check_transform(name, made.train, pictures.image(0))
    return made


def framed(source: DataSource, framing: ResizeCenterCrop | None) -> DataSource:
    """The images of a source as a network sees them."""
    return source if framing is None else ResizedSource(source, framing)


def part_to_test(images: "Dataset | ImageFiles", framing: ResizeCenterCrop | None) -> Subset:
    """The test images of a data set in memory, or files to test on, framed."""
    if isinstance(images, Dataset):
        return Subset(framed(ArraySource(images.test.images, images.test.labels), framing), np.arange(len(images.test)))
    return Subset(framed(FileSource(images), framing), np.arange(len(images)), _WORKERS)


def _pad_crop_flip(recipe: Recipe, mean: Sequence[float]) -> PadCropFlip:
    return PadCropFlip(
        recipe.pad,
        mode="reflect" if recipe.pad_mode == "reflect" else "constant",
        fill=mean_fill(mean) if recipe.pad_mode == "mean" else (0,),
    )
