"""`resnet-tf summary`: what a network consists of."""

from collections.abc import Sequence
from typing import Any

from resnet_tf.cli.main import FIGURES, Parser, check_output_file, writing
from resnet_tf.config import MAX_CLASSES, MAX_SIDE, MAX_WIDTH, SHORTCUTS
from resnet_tf.errors import UserError
from resnet_tf.process import load_tensorflow


def make_parser() -> Parser:
    """The parser of `resnet-tf summary`."""
    parser = Parser(
        prog="resnet-tf summary",
        description="Output shapes, parameters and multiply-adds of a network, by stage.",
    )
    parser.add_argument(
        "model", metavar="MODEL_NAME|FILE", help="a network by name, a .keras or .h5 file, or a run folder"
    )
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
    """Print the table of a network; returns its totals: parameters (trainable) and multiply_adds."""
    arguments = make_parser().parse_args(argv)
    for name, high in (("input_size", MAX_SIDE), ("classes", MAX_CLASSES), ("width", MAX_WIDTH)):
        value = getattr(arguments, name)
        if value is not None and not 1 <= value <= high:
            raise UserError(f"{name}={value} is out of range; allowed: 1 to {high}")
    side = arguments.input_size
    check_output_file("plot", arguments.plot, FIGURES)
    load_tensorflow()
    from resnet_tf.reports.plots import draw_network, save
    from resnet_tf.saving import build_or_load
    from resnet_tf.summary import boxes_of, describe_summary, summarize

    model = build_or_load(
        arguments.model,
        classes=arguments.classes,
        input_shape=side and (side, side, 3),
        shortcut=arguments.shortcut,
        width=arguments.width,
        stride_on=arguments.stride_on,
    )
    stages = summarize(model)
    print(f"{model.name}\n{describe_summary(stages)}")
    if arguments.plot is not None:
        with writing("plot", arguments.plot) as plot:
            save(draw_network(boxes_of(model), model.name), plot)
        print(f"drawn in {plot}")
    return {
        "parameters": sum(stage.parameters for stage in stages),
        "multiply_adds": sum(stage.multiply_adds for stage in stages),
    }
