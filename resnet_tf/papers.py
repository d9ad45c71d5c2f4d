"""What the papers report on CIFAR-10, as data. Imports nothing."""

from dataclasses import dataclass

ORIGINAL = "arXiv:1512.03385, table 6"
PREACTIVATION = "arXiv:1603.05027, tables 3 and 4"
BASELINE = "arXiv:1603.05027, table 4"


@dataclass(frozen=True)
class Figure:
    """A published test error.

    Attributes:
        error: in percent, on the original CIFAR-10.
        parameters: the count as the paper gives it.
        runs: what the error is of.
        source: where it stands.
    """

    error: float
    parameters: str
    runs: str
    source: str


FIGURES = {
    "resnet20_v1": Figure(8.75, "0.27M", "one run", ORIGINAL),
    "resnet32_v1": Figure(7.51, "0.46M", "one run", ORIGINAL),
    "resnet44_v1": Figure(7.17, "0.66M", "one run", ORIGINAL),
    "resnet56_v1": Figure(6.97, "0.85M", "one run", ORIGINAL),
    "resnet110_v1": Figure(6.43, "1.7M", "best of 5, 6.61 ± 0.16", ORIGINAL),
    "resnet1202_v1": Figure(7.93, "19.4M", "one run", ORIGINAL),
    "resnet164_v1": Figure(5.93, "1.7M", "median of 5", BASELINE),
    "resnet1001_v1": Figure(7.61, "10.2M", "median of 5", BASELINE),
    "resnet110_v2": Figure(6.37, "1.7M", "median of 5", PREACTIVATION),
    "resnet164_v2": Figure(5.46, "1.7M", "median of 5", PREACTIVATION),
    "resnet1001_v2": Figure(4.92, "10.2M", "median of 5, 4.89 ± 0.14", PREACTIVATION),
}

# Standard deviation of the error, in points, over five runs of resnet110_v1 (table 6): what chance does to a training.
SEED_DEVIATION = 0.16
