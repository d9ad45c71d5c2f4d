"""`resnet-tf preview`: parse, draw, save."""

from collections.abc import Sequence

from resnet_tf.cli.main import FIGURES, Parser, add_train_flags, check_output_file, writing
from resnet_tf.data.dataset import DATASETS, IMAGE_FORMS
from resnet_tf.process import load_tensorflow


def make_parser() -> Parser:
    """The parser of `resnet-tf preview`."""
    parser = Parser(
        prog="resnet-tf preview",
        description="Draw the first images of a training as the network sees them: as evaluated, and varied below.",
    )
    parser.add_argument("data", metavar="DATASET", help=", ".join((*DATASETS, *IMAGE_FORMS)))
    parser.add_argument("--output", metavar="FILE", required=True, help="picture to write: .png, .pdf or .svg")
    parser.add_argument("--count", type=int, default=16, help="number of images (default: %(default)s)")
    add_train_flags(parser, "model", "data_dir", "seed", "augment", "input_size", "on_bad_image")
    return parser


def main(argv: Sequence[str]) -> None:
    """Draw the images of a data set, and save the picture."""
    options = vars(make_parser().parse_args(argv))
    output = options.pop("output")
    check_output_file("output", output, FIGURES)
    load_tensorflow()
    from resnet_tf.data.prepare import preview
    from resnet_tf.reports.plots import save

    figure = preview(**options)
    with writing("output", output) as path:
        save(figure, path)
    print(f"drawn in {output}")
