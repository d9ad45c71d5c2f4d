"""Whose PyTorch networks we know: how they name their tensors, and the pixels that they were trained on."""

from collections.abc import Mapping
from dataclasses import dataclass

from resnet_tf.errors import UserError
from resnet_tf.transfer.tensors import StoredTensor

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Source:
    """A family of published checkpoints.

    `first_stage` is our number of the stage that they call layer1; `shortcut` and `head` are their names of the
    projection and the classifier; `mean` and `std` are in 0-255 units; `dataset` is what the usual classes belong to;
    `resize` is the shorter side, and `crop` the square cut out of it, that they were tested with.
    """

    name: str
    first_stage: int
    shortcut: str
    head: str
    dataset: str
    mean: Rgb
    std: Rgb
    resize: int
    crop: int


def _pixels(red: float, green: float, blue: float) -> Rgb:
    """0-255 units from the 0-1 units in which the sources state their constants."""
    return (255 * red, 255 * green, 255 * blue)


_IMAGENET_MEAN = _pixels(0.485, 0.456, 0.406)
_IMAGENET_STD = _pixels(0.229, 0.224, 0.225)

# timm's resnet*.tv_in1k carry torchvision's weights under torchvision's names.
TORCHVISION = Source("torchvision", 2, "downsample", "fc", "imagenet", _IMAGENET_MEAN, _IMAGENET_STD, 256, 224)
# akamaster/pytorch_resnet_cifar10 normalises CIFAR-10 with ImageNet's constants (trainer.py).
AKAMASTER = Source("akamaster", 1, "shortcut", "linear", "cifar10", _IMAGENET_MEAN, _IMAGENET_STD, 32, 32)
# chenyaofo/pytorch-cifar-models; its standard deviations are means over single images, and its networks expect them.
CHENYAOFO_10 = Source(
    "chenyaofo",
    1,
    "downsample",
    "fc",
    "cifar10",
    _pixels(0.4914, 0.4822, 0.4465),
    _pixels(0.2023, 0.1994, 0.2010),
    32,
    32,
)
CHENYAOFO_100 = Source(
    "chenyaofo",
    1,
    "downsample",
    "fc",
    "cifar100",
    _pixels(0.5070, 0.4865, 0.4409),
    _pixels(0.2673, 0.2564, 0.2761),
    32,
    32,
)


def source_of(tensors: Mapping[str, StoredTensor]) -> Source:
    """Tell from the tensors' names whose network it is.

    Raises:
        UserError: it is none that is known.
    """
    if "conv1.weight" in tensors and "layer1.0.conv1.weight" in tensors:
        if any(name.startswith("layer4.") for name in tensors):
            return TORCHVISION
        if "linear.weight" in tensors:
            return AKAMASTER
        if "fc.weight" in tensors:
            return CHENYAOFO_100 if tensors["fc.weight"].shape[:1] == (100,) else CHENYAOFO_10
    raise UserError(
        f"its tensors ({', '.join(list(tensors)[:3])}, …) are not named as in a network of torchvision, timm, "
        "akamaster or chenyaofo; those are what can be imported"
    )


def has_projections(tensors: Mapping[str, StoredTensor], source: Source) -> bool:
    """Whether the network's shortcuts have weights (option B)."""
    return any(f".{source.shortcut}." in name for name in tensors)
