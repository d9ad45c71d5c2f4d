"""A user's augmentation: a function, or its name as `augment` gives it, FILE.py:FUNCTION or MODULE:FUNCTION."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_tf.errors import UserError
from resnet_tf.files import sha256_of

CustomFunction = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]


class CustomTransform:
    """A user's function of a read-only uint8 image (H, W, C) and the image's own generator; returns (size, size, C)."""

    def __init__(self, function: CustomFunction, size: int) -> None:
        self._function, self._size = function, size

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(0, 2**64, (count, 1), np.uint64)

    def apply(self, image: NDArray[np.uint8], params: np.ndarray) -> NDArray[np.uint8]:
        name = getattr(self._function, "__name__", type(self._function).__name__)
        original = image.view()
        original.flags.writeable = False
        try:
            varied = self._function(original, np.random.default_rng(int(params[0])))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.filename}, line {where.lineno}"
            raise UserError(f"the augmentation {name} raised {type(error).__name__}: {error} ({place})") from error
        expected = (self._size, self._size, image.shape[2])
        if not isinstance(varied, np.ndarray) or varied.dtype != np.uint8 or varied.shape != expected:
            got = f"{varied.dtype} {varied.shape}" if isinstance(varied, np.ndarray) else type(varied).__name__
            raise UserError(f"the augmentation {name} returned {got}; it must return uint8 {expected}")
        return varied


def is_function_name(name: Any) -> bool:
    return isinstance(name, str) and ":" in name


def digest_of(augment: Any) -> str | None:
    """SHA-256, in hex, of the file of a function by name, or of the source of one: a changed one makes another run."""
    if callable(augment):
        try:
            source = inspect.getsource(augment if hasattr(augment, "__qualname__") else type(augment))
        except (OSError, TypeError):  # typed at a prompt, or not written in Python
            return None
        return hashlib.sha256(source.encode()).hexdigest()
    if not is_function_name(augment):
        return None
    path = _file(augment)
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(f"augment={augment!r}: {path} cannot be read ({error.strerror})") from error


def name_of(augment: Any) -> str | None:
    if not callable(augment):
        return augment
    named = augment if hasattr(augment, "__qualname__") else type(augment)
    return f"{named.__module__}:{named.__qualname__}"


def load_function(name: str) -> Any:
    place, _, function = name.rpartition(":")
    path = _file(name)
    try:
        module = _run(path) if place.endswith(".py") else importlib.import_module(place)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"augment={name!r}: {path} raised {type(error).__name__}: {error}; fix it") from error
    found = getattr(module, function, None)
    if not callable(found):
        there = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise UserError(f"augment={name!r}: {path} has no function {function!r}; it has {there or 'none'}")
    return found


def check_transform(name: str, transform: Any, image: np.ndarray) -> None:
    """Apply the transform of a function to one image; UserError where it fails, or differs the second time."""
    params = transform.sample(np.random.default_rng(0), 1)[0]
    if not np.array_equal(transform.apply(image, params), transform.apply(image, params)):
        raise UserError(f"augment={name!r} made two different images of one; draw from the given generator alone")


def _file(name: str) -> Path:
    """The file that a function is in; of a module, nothing runs but the packages around it."""
    place = name.rpartition(":")[0]
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise UserError(f"augment={name!r}: there is no file {place}; name it as FILE.py:FUNCTION")
        return Path(place)
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        spec = None
    except (Exception, SystemExit) as error:  # of the packages around the module
        raise UserError(f"augment={name!r}: importing it raised {type(error).__name__}: {error}; fix it") from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(f"augment={name!r}: Python finds no module {place!r}; give FILE.py:FUNCTION or set PYTHONPATH")
    return Path(spec.origin)


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"own_augmentation_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module
