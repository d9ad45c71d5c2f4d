"""torchvision's published ImageNet weights: which file belongs to which network, fetched once and checked."""

import os
import shutil
import sys
import urllib.request
from pathlib import Path

from tqdm import tqdm

from resnet_tf.errors import UserError
from resnet_tf.files import replacing, sha256_of

ADDRESS = "https://download.pytorch.org/models/"

# torchvision/models/resnet.py, IMAGENET1K_V1: trained by the plain recipe of 90 epochs, all but the last.
# The digits behind the dash are the beginning of the file's SHA-256.
FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
    "resnext50_32x4d": "resnext50_32x4d-7cdf4587.pth",
    "resnext101_32x8d": "resnext101_32x8d-8ba56ff5.pth",
    "resnext101_64x4d": "resnext101_64x4d-173b62eb.pth",
    "wide_resnet50_2": "wide_resnet50_2-95faca4d.pth",
    "wide_resnet101_2": "wide_resnet101_2-32ee1156.pth",
}

_TIMEOUT = 30  # seconds without a byte


def published_file(network: str | None) -> Path:
    """torchvision's file for a network in `FILES`, from the cache or, the first time, from the network.

    UserError: there is none for this network, it cannot be fetched, or its checksum is wrong.
    """
    if network not in FILES:
        raise UserError(
            f"weights='imagenet' exists for {', '.join(FILES)} in their usual form (stride_on='3x3') only; "
            "give a file, or build without weights",
            argument="weights",
        )
    name = FILES[network]
    path = cache_folder() / name
    if not path.exists():
        _fetch(name, path)
    elif not _has_checksum(path, name):
        raise UserError(f"{path} does not have the checksum in its name; remove it, and fetch {ADDRESS}{name} again")
    return path


def cache_folder() -> Path:
    """Where published files are kept: the folder resnet_tf in Keras' own ($KERAS_HOME or ~/.keras)."""
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "resnet_tf"


def _has_checksum(path: Path, name: str) -> bool:
    return sha256_of(path).startswith(Path(name).stem.rpartition("-")[2])


def _fetch(name: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(ADDRESS + name, timeout=_TIMEOUT) as response, replacing(path) as temporary:
            size = int(response.headers.get("Content-Length") or 0) or None
            silent = not sys.stderr.isatty()
            with (
                open(temporary, "wb") as file,
                tqdm.wrapattr(response, "read", total=size, desc=name, disable=silent) as body,
            ):
                shutil.copyfileobj(body, file, 2**20)
            if not _has_checksum(temporary, name):
                raise UserError(f"the file from {ADDRESS}{name} does not have the checksum in its name; try again")
    except OSError as error:
        raise UserError(
            f"{name} is not in {path.parent}, and could not be fetched ({getattr(error, 'reason', None) or error}); "
            f"fetch {ADDRESS}{name} where there is a network, and put it at {path}"
        ) from error
