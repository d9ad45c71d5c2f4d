"""A model that a command's argument stands for: a file, the folder of a run, or a network by name."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_tf.errors import UserError
from resnet_tf.models.registry import list_models, model_options
from resnet_tf.pretrained.zoo import find_shipped

if TYPE_CHECKING:
    import keras


def open_model(text: str, **options: Any) -> "keras.Model":
    """Load the model of a file or run folder, or build a network with fresh weights.

    Args:
        text: .keras file, folder of a run, a name that `list_weights` knows, or one that `list_models` knows.
        **options: arguments of the builder; None leaves the network's own. They do not go with a file.

    Raises:
        UserError: there is neither such a file nor such a network, or an option does not fit.
    """
    given = {key: value for key, value in options.items() if value is not None}
    path = Path(text)
    if path.exists() or find_shipped(text) is not None:
        from resnet_tf.cli.evaluate import load_model, model_path

        if given:
            flags = ", ".join(f"--{key.replace('_', '-')}" for key in given)
            raise UserError(f"{flags} builds a network by name, and {text} is a file: leave it out")
        return load_model(model_path(path, best=False))
    try:
        model_options(text)
    except ValueError as error:
        raise UserError(
            f"{text} is neither a file nor a network; "
            f"name a .keras file, a run folder or one of {', '.join(list_models())}"
        ) from error
    from resnet_tf.models.registry import build_model

    try:
        return build_model(text, **given)
    except (TypeError, ValueError) as error:
        raise UserError(f"{text} cannot be built so: {error}") from error
