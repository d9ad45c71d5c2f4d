"""`resnet-tf summary`: what a network consists of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_tf.cli.command import Parser, load_tensorflow
from resnet_tf.cli.models import open_model
from resnet_tf.cli.train_options import SHORTCUTS
from resnet_tf.errors import UserError


def make_parser() -> Parser:
    """The parser of `resnet-tf summary`."""
    parser = Parser(
        prog="resnet-tf summary",
        description="Output shapes, parameters and multiply-adds of a network, by stage.",
    )
    parser.add_argument("model", metavar="MODEL_NAME|FILE", help="a network by name, a .keras file or a run folder")
    parser.add_argument("--plot", metavar="FILE", help="draw the units and their shortcuts (.png, .pdf or .svg)")
    group = parser.add_argument_group("for a network by name")
    group.add_argument("--classes", type=int, help="outputs of the classifier")
    group.add_argument("--input-size", type=int, metavar="PIXELS", help="side of the square input")
    group.add_argument("--shortcut", choices=SHORTCUTS, help="default: the network's own")
    group.add_argument("--width", type=int, help="multiplies the channels of a CIFAR network")
    group.add_argument(
        "--stride-on", choices=("3x3", "1x1"), help="which convolution of an ImageNet bottleneck strides"
    )
    return parser


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Print the table of a network.

    Args:
        argv: flags, see `--help`.

    Returns:
        Totals: parameters (trainable) and multiply_adds.

    Raises:
        UserError: there is no such network or file, an option does not fit, or the plot cannot be written.
    """
    arguments = make_parser().parse_args(argv)
    side = arguments.input_size
    if side is not None and side < 1:
        raise UserError(f"--input-size {side} is out of range; give 1 or more")
    if arguments.plot and Path(arguments.plot).suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--plot {arguments.plot} has no known ending; allowed: .png, .pdf, .svg")
    load_tensorflow()
    from resnet_tf.summary import describe_summary, summarize

    model = open_model(
        arguments.model,
        classes=arguments.classes,
        input_shape=side and (side, side, 3),
        shortcut=arguments.shortcut,
        width=arguments.width,
        stride_on=arguments.stride_on,
    )
    stages = summarize(model)
    print(f"{model.name}\n{describe_summary(stages)}")
    if arguments.plot:
        _plot(model, Path(arguments.plot))
    return {
        "parameters": sum(stage.parameters for stage in stages),
        "multiply_adds": sum(stage.multiply_adds for stage in stages),
    }


def _plot(model: Any, path: Path) -> None:
    from resnet_tf.reports.architecture import draw_network
    from resnet_tf.reports.plots import save
    from resnet_tf.summary import boxes_of

    try:
        save(draw_network(boxes_of(model), model.name), path)
    except OSError as error:
        raise UserError(f"--plot {path} cannot be written ({error.strerror}); give another file") from error
    print(f"drawn in {path}")
