"""PyTorch networks of the same shape as ours, for the benchmarks."""

import torch
from torch import nn


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class OptionA(nn.Module):
    """Every second pixel, zero channels before and after."""

    def __init__(self, missing: int) -> None:
        super().__init__()
        self.missing = missing

    def forward(self, x):
        half = self.missing // 2
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.missing - half))


class BasicV1(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else OptionA(outputs - inputs)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class BasicV2(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, first: bool) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.projection = None if inputs == outputs else conv(inputs, outputs, 1, stride)
        self.first = first

    def forward(self, x):
        y = torch.relu(self.bn1(x))
        around = self.projection(y) if self.projection is not None else y if self.first else x
        return self.conv2(torch.relu(self.bn2(self.conv1(y)))) + around


class Cifar(nn.Module):
    def __init__(self, depth: int, version: int) -> None:
        super().__init__()
        units, inputs = [], 16
        for stage, outputs in enumerate((16, 32, 64)):
            for index in range((depth - 2) // 6):
                stride = 2 if stage and not index else 1
                first = not stage and not index
                unit = BasicV1(inputs, outputs, stride) if version == 1 else BasicV2(inputs, outputs, stride, first)
                units.append(unit)
                inputs = outputs
        stem = [conv(3, 16, 3)] + ([nn.BatchNorm2d(16), nn.ReLU()] if version == 1 else [])
        end = [nn.BatchNorm2d(64), nn.ReLU()] if version == 2 else []
        self.body = nn.Sequential(*stem, *units, *end)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * inner
        self.branch = nn.Sequential(
            *(conv(inputs, inner, 1), nn.BatchNorm2d(inner), nn.ReLU()),
            *(conv(inner, inner, 3, stride), nn.BatchNorm2d(inner), nn.ReLU()),
            *(conv(inner, outputs, 1), nn.BatchNorm2d(outputs)),
        )
        same = inputs == outputs and stride == 1
        self.around = (
            nn.Identity() if same else nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        )

    def forward(self, x):
        return torch.relu(self.branch(x) + self.around(x))


def resnet50() -> nn.Module:
    units, inputs = [], 64
    for stage, (inner, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for index in range(blocks):
            units.append(Bottleneck(inputs, inner, 2 if stage and not index else 1))
            inputs = 4 * inner
    stem = (conv(3, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, *units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def twin(model: str) -> nn.Module:
    """The twin of `resnet50` or of a `resnet{depth}_v{version}`."""
    if model == "resnet50":
        return resnet50()
    depth, version = model.removeprefix("resnet").split("_v")
    return Cifar(int(depth), int(version))
