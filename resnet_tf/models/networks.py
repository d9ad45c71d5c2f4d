"""The networks that have names, as data: no Keras and no TensorFlow here."""

from typing import Any

BASIC_DEPTHS = (8, 14, 20, 32, 44, 56, 110, 1202)
BOTTLENECK_DEPTHS = (164, 1001)
PLAIN_DEPTHS = (20, 32, 44, 56, 110)
IMAGENET_DEPTHS = {1: (18, 34, 50, 101, 152), 2: (18, 34, 50, 101, 152, 200)}

# Groups and width of a group, doubled from stage to stage: 1611.05431 table 3; 1605.07146 section 3.4.
_WIDENED: dict[str, tuple[int, int, int]] = {
    "resnext50_32x4d": (50, 32, 4),
    "resnext101_32x8d": (101, 32, 8),
    "resnext101_64x4d": (101, 64, 4),
    "wide_resnet50_2": (50, 1, 128),
    "wide_resnet101_2": (101, 1, 128),
}

Networks = dict[str, dict[str, Any]]


def _cifar_networks() -> Networks:
    networks: Networks = {}
    for version in (1, 2):
        for depth in BASIC_DEPTHS:
            networks[f"resnet{depth}_v{version}"] = {"depth": depth, "version": version}
        for depth in BOTTLENECK_DEPTHS:
            networks[f"resnet{depth}_v{version}"] = {"depth": depth, "version": version, "block": "bottleneck"}
    for depth in PLAIN_DEPTHS:
        networks[f"plain{depth}"] = {"depth": depth, "version": 1, "shortcut": "none"}
    return networks


def _imagenet_networks() -> Networks:
    networks: Networks = {}
    for version, suffix in ((1, ""), (2, "_v2")):
        for depth in IMAGENET_DEPTHS[version]:
            networks[f"resnet{depth}{suffix}"] = {"depth": depth, "version": version}
    for name, (depth, groups, width) in _WIDENED.items():
        networks[name] = {"depth": depth, "version": 1, "groups": groups, "width_per_group": width}
    return networks


CIFAR_NETWORKS = _cifar_networks()
IMAGENET_NETWORKS = _imagenet_networks()


def default_shortcut(block: str) -> str:
    """The papers' choice for CIFAR networks of a kind of block."""
    return "identity" if block == "basic" else "projection"


def published_network(depth: int, version: int, groups: int, width_per_group: int, stride_on: str) -> str | None:
    """torchvision's name of an ImageNet network, or None where torchvision has none like it."""
    wanted = {"depth": depth, "version": version, "groups": groups, "width_per_group": width_per_group}
    for name, options in IMAGENET_NETWORKS.items():
        if version == 1 and stride_on == "3x3" and {"groups": 1, "width_per_group": 64, **options} == wanted:
            return name
    return None
