"""The tensors of a PyTorch checkpoint by name, from any of the formats in which people share them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet_tf.errors import UserError
from resnet_tf.extras import need
from resnet_tf.transfer.tensors import StoredTensor, as_float32
from resnet_tf.transfer.torch_files import naming, read_torch_file

# Under which keys training scripts keep the weights, and what wrappers of a network put before every name.
WRAPPERS = ("state_dict", "model")
PREFIXES = ("module.", "model.")

Tensors = dict[str, StoredTensor]


def read_checkpoint(path: Path) -> Tensors:
    """The tensors of a checkpoint, under the names that the bare network gave them.

    Args:
        path: a .safetensors file, or a file of torch.save (.pt, .pth, .th; zip archive or older stream), holding
            a state_dict or a dictionary with one under "state_dict" or "model".

    Raises:
        UserError: the file is not there, is damaged, holds no state_dict, or needs a package that is missing.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist or is no file; give a .pth, .pt, .th or .safetensors checkpoint")
    value = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    for wrapper in WRAPPERS:
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
            value = value[wrapper]
    if not _is_state_dict(value):
        raise UserError(
            f"{path} holds no state_dict: {_describe(value)}; save the model's state_dict(), alone or in a "
            f"dictionary under {' or '.join(map(repr, WRAPPERS))}"
        )
    return _without_prefixes(value)


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(item, StoredTensor) for item in value.values())


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dictionary with {', '.join(map(repr, list(value)[:5])) or 'nothing in it'}"
    return f"a {type(value).__name__}"


def _without_prefixes(tensors: Mapping[str, StoredTensor]) -> Tensors:
    stripped = dict(tensors)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in stripped):
            stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped


def _read_safetensors(path: Path) -> Tensors:
    safe_open = need("safetensors", "weights").safe_open
    with naming(path):
        file = safe_open(path, framework="numpy")
        return {name: _stored(path, file, name) for name in file.keys()}  # noqa: SIM118 - no mapping


def _stored(path: Path, file: Any, name: str) -> StoredTensor:
    def values() -> Any:
        with naming(path):
            return as_float32(file.get_tensor(name))

    return StoredTensor(tuple(file.get_slice(name).get_shape()), values)
