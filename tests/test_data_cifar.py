import dataclasses
import hashlib
import io
import pickle
import shutil
import struct
import sys
import tarfile
import types

import numpy as np
import pytest

from resnet_tf.data import cifar
from resnet_tf.data.cifar import load_dataset
from resnet_tf.data.dataset import fingerprint
from resnet_tf.errors import UserError

N = 20
CIFAR10 = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
CIFAR100 = ["train", "test"]
PYTHON2_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
PYTHON2_UINT8 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


@pytest.fixture(autouse=True)
def small_files(monkeypatch, tmp_path):
    monkeypatch.setattr(cifar, "IMAGES_PER_FILE", dict.fromkeys(CIFAR10 + CIFAR100, N))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


def contents(name, classes=10):
    """Rows (N, 3072) in the files' channel order and labels (N,), another set for each file name."""
    rng = np.random.default_rng(list(name.encode()))
    return rng.integers(0, 256, (N, 3072), dtype=np.uint8), rng.integers(0, classes, N)


def text(value):
    return b"U" + bytes([len(value)]) + value


def python2_pickle(rows, labels, label_key=b"labels", dtype=PYTHON2_UINT8):
    """A batch as Python 2 wrote it with protocol 2: byte strings, an array rebuilt by numpy.core.multiarray."""
    whole = rows.tobytes()
    shape = b"".join(b"M" + struct.pack("<H", n) for n in rows.shape) + b"\x86"
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(whole)) + whole + b"tb"
    numbers = b"](" + b"".join(b"J" + struct.pack("<i", int(label)) for label in labels) + b"e"
    return b"\x80\x02}(" + text(label_key) + numbers + text(b"data") + PYTHON2_ARRAY + state + b"u."


def binary(name, rows, labels):
    header = [labels[:, None]] if "batch" in name else [labels[:, None] * 0, labels[:, None]]
    return np.concatenate([*header, rows], axis=1).astype(np.uint8).tobytes()


def official(kind="cifar10", version="python"):
    """{official path: bytes} of one distribution."""
    names, classes = (CIFAR10, 10) if kind == "cifar10" else (CIFAR100, 100)
    folder = {"cifar10python": "cifar-10-batches-py", "cifar10binary": "cifar-10-batches-bin"}.get(
        kind + version, f"cifar-100-{version}"
    )
    if version == "binary":
        return {f"{folder}/{name}.bin": binary(name, *contents(name, classes)) for name in names}
    key = b"labels" if kind == "cifar10" else b"fine_labels"
    return {f"{folder}/{name}": python2_pickle(*contents(name, classes), key) for name in names}


def write_folder(place, files):
    for name, raw in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(raw)
    return place


def write_tar(path, files, links=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo(next(iter(files)).split("/")[0])
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, raw in files.items():
            member = tarfile.TarInfo(name)
            if name in links:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


def check(data, names, classes):
    assert data.train.images.shape == ((len(names) - 1) * N, 32, 32, 3)
    assert data.test.images.shape == (N, 32, 32, 3)
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == data.test.labels.dtype == np.int32
    assert len(data.class_names) == len(set(data.class_names)) == classes
    for k, name in enumerate(names):
        rows, labels = contents(name, classes)
        split, start = (data.test, 0) if k == len(names) - 1 else (data.train, k * N)
        assert np.array_equal(split.labels[start : start + N], labels)
        # A pixel's red, green and blue lie 1,024 values apart in a row; pixels run along the lines of the image.
        image = [[[rows[3, c * 1024 + y * 32 + x] for c in range(3)] for x in range(32)] for y in range(32)]
        assert np.array_equal(split.images[start + 3], image)


def refused(place, *words, kind="cifar10"):
    with pytest.raises(UserError) as caught:
        load_dataset(kind, place)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("version", ["python", "binary"])
@pytest.mark.parametrize(("kind", "names", "classes"), [("cifar10", CIFAR10, 10), ("cifar100", CIFAR100, 100)])
@pytest.mark.parametrize("form", ["folder", "folder itself", "archive", "folder of archive"])
def test_every_form_is_read(tmp_path, version, kind, names, classes, form):
    files = official(kind, version)
    if form.startswith("folder") and "archive" not in form:
        place = write_folder(tmp_path / "d", files)
        place = place / next(iter(files)).split("/")[0] if "itself" in form else place
    else:
        archive = write_tar(tmp_path / "d" / (f"{kind.replace('r', 'r-')}-{version}.tar.gz"), files)
        place = archive if form == "archive" else archive.parent
    before = sorted(tmp_path.rglob("*"))
    data = load_dataset(kind, str(place))
    check(data, names, classes)
    assert (data.name, data.source) == (kind, "unrecognized copy")
    assert sorted(tmp_path.rglob("*")) == before


def test_known_class_names(tmp_path):
    ten = load_dataset("cifar10", write_folder(tmp_path / "ten", official())).class_names
    assert ten == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    hundred = load_dataset("cifar100", write_folder(tmp_path / "hundred", official("cifar100"))).class_names
    assert [hundred[k] for k in (0, 19, 49, 71, 99)] == ["apple", "cattle", "mountain", "sea", "worm"]
    assert list(hundred) == sorted(hundred)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("key", [b"labels", "labels"])
def test_files_pickled_anew_by_python_3(tmp_path, protocol, key):
    place = write_folder(tmp_path, official()) / "cifar-10-batches-py"
    for name in CIFAR10:
        rows, labels = contents(name)
        data_key = b"data" if isinstance(key, bytes) else "data"
        batch = {key: labels.tolist(), data_key: np.asfortranarray(rows) if protocol == 3 else rows}
        (place / name).write_bytes(pickle.dumps(batch, protocol))
    check(load_dataset("cifar10", tmp_path), CIFAR10, 10)


def test_the_original_is_known_by_the_files_md5(tmp_path, monkeypatch):
    assert cifar.KINDS["cifar10"].md5[5] == "40351d587109b95175f43aff81a1287e"
    assert cifar.KINDS["cifar100"].md5[0] == "16019d7e3df5f24257cddd939b257f8d"
    files = official("cifar100")
    sums = tuple(hashlib.md5(raw).hexdigest() for raw in files.values())
    kind = cifar.KINDS["cifar100"]
    monkeypatch.setitem(cifar.KINDS, "cifar100", type(kind)(**{**vars(kind), "md5": sums}))
    assert load_dataset("cifar100", write_folder(tmp_path, files)).source == "original"


@pytest.mark.parametrize("version", ["python", "binary"])
def test_the_original_is_known_by_its_images_in_any_files(tmp_path, monkeypatch, version):
    kind = cifar.KINDS["cifar10"]
    # Of the 50,000 and 10,000 images of the official files, whose MD5 sums are those of the authors' page.
    assert [digest[:8] for digest in kind.content] == ["031aaec0", "543c4c74"]
    write_folder(tmp_path, official("cifar10", version))
    data = load_dataset("cifar10", tmp_path)
    assert data.source == "unrecognized copy"
    content = (fingerprint(data.train), fingerprint(data.test))
    monkeypatch.setitem(cifar.KINDS, "cifar10", dataclasses.replace(kind, content=content))
    assert load_dataset("cifar10", tmp_path).source == "original"
    monkeypatch.setitem(cifar.KINDS, "cifar10", dataclasses.replace(kind, content=(content[0], "0")))
    assert load_dataset("cifar10", tmp_path).source == "unrecognized copy"


def test_the_jpeg_copy_is_known_by_its_test_images(tmp_path, monkeypatch):
    write_folder(tmp_path, official())
    known = fingerprint(load_dataset("cifar10", tmp_path).test)
    monkeypatch.setattr(cifar, "JPEG_TEST_FINGERPRINT", known)
    assert load_dataset("cifar10", tmp_path).source == "JPEG copy"


def test_unknown_name_and_places_without_data(tmp_path):
    refused(tmp_path, "mnist", "cifar10, cifar100", kind="mnist")
    refused(tmp_path / "none", str(tmp_path / "none"), "does not exist")
    refused(tmp_path, str(tmp_path), "holds no CIFAR-10", "cifar-10-batches-py", "cifar-10-python.tar.gz")
    write_folder(tmp_path, official("cifar100"))
    refused(tmp_path, "holds no CIFAR-10")


def test_missing_batch(tmp_path):
    files = official()
    del files["cifar-10-batches-py/data_batch_3"]
    refused(write_folder(tmp_path / "folder", files), "lacks data_batch_3", str(tmp_path / "folder"))
    refused(write_tar(tmp_path / "some.tar.gz", files), "lacks data_batch_3", "some.tar.gz")
    write_tar(tmp_path / "folder" / "cifar-10-python.tar.gz", official())
    check(load_dataset("cifar10", tmp_path / "folder"), CIFAR10, 10)


def spoil(tmp_path, raw, name="cifar-10-batches-py/data_batch_2", version="python"):
    return write_folder(tmp_path, official("cifar10", version) | {name: raw})


@pytest.mark.parametrize("kept", [1, 30, 2_000, -1])
def test_truncated_pickle(tmp_path, kept):
    whole = official()["cifar-10-batches-py/data_batch_2"]
    refused(spoil(tmp_path, whole[:kept]), "data_batch_2", "cut short", "again")


def test_empty_foreign_and_binary_files(tmp_path):
    refused(spoil(tmp_path / "empty", b""), "data_batch_2 is empty")
    refused(spoil(tmp_path / "foreign", b"\x89PNG\r\n\x1a\n" * 50), "data_batch_2", "no CIFAR-10 file")
    refused(spoil(tmp_path / "list", pickle.dumps([1, 2])), "data_batch_2", "a NoneType as 'data'")
    name = "cifar-10-batches-bin/data_batch_2.bin"
    whole = official("cifar10", "binary")[name]
    refused(spoil(tmp_path / "short", whole[:-1], name, "binary"), "data_batch_2.bin", "61,459 bytes", "61,460")


@pytest.mark.parametrize("label", [-1, 10, 255, 256, 2**31 - 1])
def test_labels_out_of_range(tmp_path, label):
    rows, labels = contents("data_batch_2")
    refused(spoil(tmp_path, python2_pickle(rows, [*labels[:-1], label])), "data_batch_2", "from 0 to 9" * (label < 256))


def test_binary_label_out_of_range(tmp_path):
    rows, labels = contents("data_batch_2")
    raw = binary("data_batch_2", rows, labels + 100)
    refused(spoil(tmp_path, raw, "cifar-10-batches-bin/data_batch_2.bin", "binary"), "data_batch_2.bin", "from 0 to 9")


@pytest.mark.parametrize("labels", [[0] * (N - 1), [0.0] * N, [True] * N, "0" * N])
def test_labels_of_another_form(tmp_path, labels):
    raw = pickle.dumps({"labels": labels, "data": contents("data_batch_2")[0]}, 4)
    refused(spoil(tmp_path, raw), "data_batch_2", f"does not hold {N} whole numbers", "'labels'")


@pytest.mark.parametrize("shape", [(N - 1, 3072), (N, 3071), (3072, N), (N, 3072, 1)])
def test_data_of_another_shape(tmp_path, shape):
    raw = pickle.dumps({"labels": [0] * N, "data": np.zeros(shape, np.uint8)}, 4)
    refused(spoil(tmp_path, raw), "data_batch_2", str(shape), f"({N}, 3072) uint8")


@pytest.mark.parametrize("dtype", [np.int8, np.float32, object])
def test_data_of_another_dtype(tmp_path, dtype):
    raw = pickle.dumps({"labels": [0] * N, "data": np.zeros((2, 2), dtype)}, 4)
    refused(spoil(tmp_path, raw), "data_batch_2")


def test_an_array_is_not_allocated_on_the_pickles_word(tmp_path):
    huge = b"\x80\x02}(" + text(b"data") + PYTHON2_ARRAY + b"(K\x01J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"
    huge += PYTHON2_UINT8 + b"\x89" + text(b"few bytes") + b"tbu."
    refused(spoil(tmp_path, huge), "data_batch_2", "do not fill its shape")


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (b"cos\nsystem\n", "os.system"),
        (b"cposix\nsystem\n", "posix.system"),
        (b"c__builtin__\neval\n", "builtins.eval"),
        (b"cnumpy.testing\nrundocs\n", "numpy.testing.rundocs"),
        (b"c_codecs\ndecode\n", "_codecs.decode"),
        (b"cnumpy\nload\n", "numpy.load"),
    ],
)
def test_a_foreign_pickle_is_refused_by_name_and_runs_nothing(tmp_path, call, name):
    command = f"touch {tmp_path / 'ran'}".encode()
    raw = b"\x80\x02" + call + b"X" + struct.pack("<I", len(command)) + command + b"\x85R."
    files = official() | {"cifar-10-batches-py/data_batch_1": raw}
    refused(write_folder(tmp_path / "folder", files), "data_batch_1", name.split(".")[-1], "nothing of it was run")
    refused(write_tar(tmp_path / "some.tar.gz", files), "data_batch_1", "some.tar.gz", "nothing of it was run")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("encoding", [b"rot13", b"utf-7"])
def test_only_latin1_is_encoded(tmp_path, encoding):
    raw = b"\x80\x02c_codecs\nencode\nX\x03\x00\x00\x00abcX" + struct.pack("<I", len(encoding)) + encoding + b"\x86R."
    refused(spoil(tmp_path, raw), "data_batch_2", "unusual")


def test_over_large_files_are_refused_unread(tmp_path, monkeypatch):
    limit = N * (2 * 3072 + 256) + 65_536
    files = official() | {"cifar-10-batches-py/data_batch_4": bytes(limit + 1)}
    del files["cifar-10-batches-py/data_batch_1"], files["cifar-10-batches-py/data_batch_2"]
    del files["cifar-10-batches-py/data_batch_3"]
    refused(write_folder(tmp_path / "folder", files), "data_batch_4", f"{limit:,}")
    monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda *_: io.BytesIO())
    refused(write_tar(tmp_path / "some.tar.gz", files), "data_batch_4", "some.tar.gz", f"{limit:,}")


def test_links_in_an_archive_are_refused(tmp_path):
    link = "cifar-10-batches-py/data_batch_1"
    refused(write_tar(tmp_path / "some.tar.gz", official(), [link]), link, "some.tar.gz", "link")


@pytest.mark.parametrize("kept", [0, 10, 5_000, 100_000])
def test_archives_cut_short(tmp_path, kept):
    path = write_tar(tmp_path / "some.tar.gz", official())
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, "some.tar.gz", "cut short")


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "notes.txt").write_text("hello\n" * 500)
    refused(tmp_path / "notes.txt", "notes.txt", "no tar archive")


@pytest.fixture
def keras(monkeypatch):
    """A Keras without network that records what it is asked for, and deletes as the real one does."""

    def get_file(fname, origin, file_hash, cache_dir):
        calls.append((fname, origin, file_hash, cache_dir))
        raise Exception(f"URL fetch failure on {origin}: None -- [Errno -2]\nName or service not known")

    calls = []
    stand_in = types.SimpleNamespace(utils=types.SimpleNamespace(get_file=get_file), calls=calls)
    monkeypatch.setitem(sys.modules, "keras", stand_in)
    return stand_in


@pytest.mark.parametrize("form", ["cifar-10-batches-py-target/", "", "archive", "old archive"])
def test_keras_cache_is_read_and_left_alone(tmp_path, keras, form):
    cache = tmp_path / "keras" / "datasets"
    if "archive" in form:
        name = "cifar-10-batches-py-target_archive" if form == "archive" else "cifar-10-batches-py.tar.gz"
        write_tar(cache / name, official())
    else:
        write_folder(cache, {form + name: raw for name, raw in official().items()})
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    check(load_dataset("cifar10"), CIFAR10, 10)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before
    assert keras.calls == []


def test_a_damaged_archive_in_the_cache_is_named_and_not_replaced(tmp_path, keras):
    archive = tmp_path / "keras" / "datasets" / "cifar-100-python-target_archive"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"mine")
    refused(None, str(archive), kind="cifar100")
    assert archive.read_bytes() == b"mine"
    assert keras.calls == []


def test_offline_with_nothing_found(tmp_path, keras):
    message = refused(None, str(tmp_path / "keras" / "datasets"), "data='shapes'", "data_dir=…", "URL fetch failure")
    assert "Name or service not known" in message
    [(fname, origin, file_hash, home)] = keras.calls
    assert fname == "cifar-10-batches-py-target_archive.part"
    assert origin == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert file_hash == "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    assert home == str(tmp_path / "keras")


def test_a_given_folder_without_data_is_never_downloaded_for(tmp_path, keras):
    refused(tmp_path, "holds no CIFAR-10")
    assert keras.calls == []


def test_a_download_is_kept_under_keras_own_name(tmp_path, keras):
    made = write_tar(tmp_path / "made.tar.gz", official("cifar100"))

    def get_file(fname, origin, file_hash, cache_dir):
        assert origin.endswith("/cifar-100-python.tar.gz")
        path = tmp_path / "keras" / "datasets" / fname
        path.parent.mkdir(exist_ok=True)
        return shutil.copy(made, path)

    keras.utils.get_file = get_file
    check(load_dataset("cifar100"), CIFAR100, 100)
    assert [path.name for path in (tmp_path / "keras" / "datasets").iterdir()] == ["cifar-100-python-target_archive"]
    del keras.utils.get_file
    check(load_dataset("cifar100"), CIFAR100, 100)
