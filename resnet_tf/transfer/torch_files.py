"""The two containers of torch.save: the zip archive (PyTorch 1.6 and later) and the stream before it."""

import contextlib
import functools
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from resnet_tf.errors import UserError
from resnet_tf.transfer.tensors import StoredTensor, as_float32
from resnet_tf.transfer.torch_pickle import STORAGES, Storage, Strided, load_pickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

ReadStorage = Callable[[Storage], np.ndarray]


def read_torch_file(path: Path) -> Any:
    """What torch.save wrote, with a `StoredTensor` for each tensor, and nothing in it run.

    Args:
        path: a file of torch.save, zip archive or older stream, of any byte order.

    Returns:
        Plain containers, numbers and text. The tensors' values are read from the file later, one storage at a time.

    Raises:
        UserError: the file is damaged, or holds something other than tensors and plain containers.
    """
    with naming(path):
        with open(path, "rb") as file:
            head = file.read(4)
        if head[:2] == b"PK":
            value, read = _read_archive(path)
        elif head[:3] == b"\x80\x02\x8a":
            value, read = _read_stream(path)
        else:
            raise UserError("it is neither a file of torch.save nor a .safetensors file")
        return _with_tensors(value, _tensor_reader(path, read))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path} cannot be imported: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # readers of damaged files raise whatever they stumble over
        raise UserError(f"{path} cannot be imported: it is cut short or damaged ({error}); fetch it again") from error


def _read_archive(path: Path) -> tuple[Any, ReadStorage]:
    archive = zipfile.ZipFile(path)
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError("it is a zip archive, but not one of torch.save")
    root = pickles[0].removesuffix("data.pkl")
    size = path.stat().st_size

    def read_entry(name: str) -> bytes:
        entry = entries.get(root + name)
        if entry is None:
            raise UserError(f"its part {name} is missing; fetch it again")
        # torch.save never compresses, so that no part can be larger than the file.
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            raise UserError(f"its part {name} is compressed; save it again with torch.save, which never does that")
        return archive.read(entry)

    big = root + "byteorder" in entries and read_entry("byteorder") == b"big"

    def read(storage: Storage) -> np.ndarray:
        dtype = _dtype(storage, big)
        data = read_entry(f"data/{storage.key}")
        if len(data) != storage.numel * dtype.itemsize:
            raise UserError(f"its part data/{storage.key} has {len(data)} bytes for {storage.numel} {dtype} numbers")
        return np.frombuffer(data, dtype)

    return load_pickle(io.BytesIO(read_entry("data.pkl"))), read


def _read_stream(path: Path) -> tuple[Any, ReadStorage]:
    with open(path, "rb") as file:
        magic, protocol, system = (load_pickle(file) for _ in range(3))
        if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL or not isinstance(system, dict):
            raise UserError("it is not a file of torch.save")
        big = not system.get("little_endian", True)
        value = load_pickle(file)
        keys = load_pickle(file)
        places = _places(file, keys, _by_key(_storages(value)), path.stat().st_size)

    def read(storage: Storage) -> np.ndarray:
        if storage.key not in places:
            raise UserError(f"its storage {storage.key} is missing; fetch it again")
        return np.fromfile(path, _dtype(storage, big), storage.numel, offset=places[storage.key])

    return value, read


def _dtype(storage: Storage, big_endian: bool) -> np.dtype:
    return np.dtype(STORAGES[storage.kind]).newbyteorder(">" if big_endian else "<")


def _places(file: BinaryIO, keys: Any, storages: dict[str, Storage], size: int) -> dict[str, int]:
    """Where in a stream the numbers of each storage begin: they follow one another, each after its count."""
    places: dict[str, int] = {}
    for key in keys if isinstance(keys, list) else []:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise UserError(f"its storage {key!r} belongs to no tensor")
        count = int.from_bytes(file.read(8), "little")
        width = _dtype(storage, False).itemsize
        if count != storage.numel or file.tell() + count * width > size:
            raise UserError(f"its storage {key} is cut short; fetch it again")
        places[key] = file.tell()
        file.seek(count * width, io.SEEK_CUR)
    return places


def _by_key(storages: Iterator[Storage]) -> dict[str, Storage]:
    known: dict[str, Storage] = {}
    for storage in storages:
        if known.setdefault(storage.key, storage) != storage:
            raise UserError(f"it describes the storage {storage.key} in two ways")
    return known


def _storages(value: Any) -> Iterator[Storage]:
    """The storages of all tensors in nested containers."""
    if isinstance(value, Strided):
        yield value.storage
    elif isinstance(value, dict):
        for item in dict.values(value):
            yield from _storages(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _storages(item)


def _tensor_reader(path: Path, read: ReadStorage) -> Callable[[Strided], StoredTensor]:
    # Several tensors may share a storage and then follow one another; more than the last one would fill the memory.
    read_once = functools.lru_cache(maxsize=1)(read)

    def tensor(description: Strided) -> StoredTensor:
        def values() -> np.ndarray:
            with naming(path):
                numbers = read_once(description.storage)
            window = np.lib.stride_tricks.as_strided(
                numbers[description.offset :],
                description.shape,
                [step * numbers.itemsize for step in description.strides],
                writeable=False,
            )
            return as_float32(window, bfloat16=description.storage.kind == "BFloat16Storage")

        return StoredTensor(description.shape, values)

    return tensor


def _with_tensors(value: Any, tensor: Callable[[Strided], StoredTensor]) -> Any:
    """A copy of the outer containers, dictionaries in dictionaries, whose tensors can be read."""
    if isinstance(value, Strided):
        return tensor(value)
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensor) for key, item in dict.items(value)}
    return value
