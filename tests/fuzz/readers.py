"""The readers: for each what whole files are like, how they are damaged, and what reads them. Light imports first."""

import contextlib
import functools
import gzip
import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np

from tests.fuzz.mutators import damage, damage_json, damage_pickle, damage_table, damage_zip

FIXTURES = Path(__file__).parents[1] / "fixtures"
READERS = {}


class Reader:
    """A reader by name; `samples(folder)` gives whole files, `read(folder, data)` reads a damaged one."""

    def __init__(self, name, samples, mutate, read):
        self.name, self.make_samples, self.mutate, self.read = name, samples, mutate, read
        READERS[name] = self

    def prepare(self, folder):
        self.folder = folder
        self.samples = self.make_samples(folder)

    def case(self, rng):
        """A damaged file."""
        first, second = rng.choice(self.samples), rng.choice(self.samples)
        return self.mutate(rng, first, second)


def reader(name, samples, mutate):
    return lambda read: Reader(name, samples, mutate, read)


def given(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


# Checkpoints of PyTorch.


def torch_samples(make, fixture):
    def samples(folder):
        from tests.fixtures.wild import save

        arrays = {"module.conv1.weight": np.ones((2, 3, 3, 3), np.float32), "module.fc.bias": np.ones(4, np.float32)}
        wraps = (lambda t: t), (lambda t: {"state_dict": t, "epoch": 3, "args": [1, ("a", 2)]})
        made = []
        for wrap in wraps:
            save(folder / "sample", arrays, wrap, kind=make)
            made.append((folder / "sample").read_bytes())
        return [*made, (FIXTURES / fixture).read_bytes()]

    return samples


def read_torch(folder, data, name="case.pth"):
    from resnet_tf.pretrained.torch_file import read_checkpoint

    for tensor in read_checkpoint(given(folder, name, data)).values():
        tensor.read()


zipped = functools.partial(damage_zip, inner={"data.pkl": damage_pickle})
Reader("torch-zip", torch_samples("archive", "dtypes.pth"), zipped, read_torch)
Reader("torch-legacy", torch_samples("stream", "dtypes_legacy.pth"), damage_pickle, read_torch)


def safetensors_samples(folder):
    from safetensors.numpy import save

    return [save({"conv1.weight": np.ones((2, 3), np.float32), "b": np.ones(3, np.float16)}), save({"a": np.ones(1)})]


def damage_safetensors(rng, data, other):
    if rng.random() < 0.5:
        return damage(rng, data, other)
    length = int.from_bytes(data[:8], "little")
    header = damage_json(rng, data[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


Reader(
    "safetensors",
    safetensors_samples,
    damage_safetensors,
    functools.partial(read_torch, name="case.safetensors"),
)


# CIFAR, with two images a file.


def small_cifar():
    from resnet_tf.data import cifar

    cifar.IMAGES_PER_FILE = dict.fromkeys(cifar.IMAGES_PER_FILE, 2)
    return cifar, cifar.KINDS["cifar10"]


def cifar_batch():
    return {b"batch_label": b"x", b"labels": [3, 7], b"data": np.arange(6144).astype(np.uint8).reshape(2, 3072)}


def cifar_samples(folder):
    from tests.test_data_cifar import python2_pickle

    batch = cifar_batch()
    made = [pickle.dumps(batch, protocol) for protocol in (2, 4)]
    made.append(python2_pickle(batch[b"data"], np.array([1, 2])))
    place = folder / "batches"
    place.mkdir(exist_ok=True)
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        (place / name).write_bytes(made[0])
    return made


@reader("cifar-pickle", cifar_samples, damage_pickle)
def read_cifar_pickle(folder, data):
    cifar, info = small_cifar()
    given(folder / "batches", "data_batch_1", data)
    cifar.read_folder(info, folder / "batches", "")


def archive_samples(folder):
    pickles = cifar_samples(folder)
    made = []
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as archive:
            for k, name in enumerate((*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")):
                entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                entry.size, entry.pax_headers = len(pickles[k % 2]), {"comment": "x"} if form else {}
                archive.addfile(entry, io.BytesIO(pickles[k % 2]))
        made.append(file.getvalue())
    return made


# Of a tar header: name, mode, size, kind, link, magic, prefix and the map of a sparse file.
FIELDS = ((0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155), (386, 96))
FILLINGS = (b"7" * 11, b"\x80" + b"\xff" * 10, *(b"%c" % kind for kind in b"SxgLK125\0"), b"-1", b"00")


def damage_archive(rng, data, other):
    """A tar archive with fields of a header changed under a right checksum, or bytes; compressed every second time."""
    data = bytearray(data)
    if rng.random() < 0.7:
        headers = [i for i in range(0, len(data) - 512, 512) if data[i + 257 : i + 262] == b"ustar"]
        for _ in range(rng.randint(1, 3)):
            at = rng.choice(headers)
            field, size = rng.choice(
                ((0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155), (386, 96))
            )
            values = (
                b"7" * 11,
                b"\x80" + b"\xff" * 10,
                b"S",
                b"x",
                b"g",
                b"L",
                b"K",
                b"1",
                b"2",
                b"5",
                b"\0",
                b"-1",
                b"00",
            )
            value = rng.choice((*values, damage(rng, data[at + field : at + field + size])))[:size]
            data[at + field : at + field + len(value)] = value
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    else:
        data = damage(rng, data, other)
    data = bytes(data)
    if rng.random() < 0.5:
        return data
    packed = gzip.compress(data, 1)
    return damage(rng, packed, most=2) if rng.random() < 0.3 else packed


@reader("cifar-archive", archive_samples, damage_archive)
def read_cifar_archive(folder, data):
    cifar, info = small_cifar()
    cifar.read_archive(info, given(folder, "cifar.tar.gz", data))


# Images and lists of them.


def image_samples(folder):
    from resnet_tf.data.image_io import cv2

    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (6, 7, 3), np.uint8), (23, 17))
    kinds = (".jpg", ".png", ".bmp", ".tiff", ".webp", ".ppm", ".pgm", ".jp2", ".gif", ".avif")
    progressive = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 1)
    made = [bytes(content) for kind in kinds for ok, content in [cv2.imencode(kind, image)] if ok]
    made.append(cv2.imencode(".jpg", image, progressive)[1].tobytes())
    made.append(cv2.imencode(".png", image.astype(np.uint16) * 257)[1].tobytes())
    return made


@reader("images", image_samples, damage)
def read_images(folder, data):
    from resnet_tf.data.image_io import UnreadableImageError, decode_image

    for channels, side in ((3, None), (1, None), (3, 4)):
        with contextlib.suppress(UnreadableImageError):
            image = decode_image(data, channels, side)
            assert (image.dtype, image.ndim, image.shape[-1]) == (np.uint8, 3, channels)


def list_samples(folder):
    for name in ("a.png", "b c.png", "d.jpg"):
        (folder / name).write_bytes(b"x")
    return [
        b"a.png 0\nb c.png 1\nd.jpg 0\n",
        b"# list\na.png cat\nd.jpg dog\n",
        b"path,label\na.png,cat\nb c.png,dog\n",
        b"filename;x;class\na.png;1;cat\nd.jpg;2;dog\n",
        b"a.png\tcat\nd.jpg\tdog\n",
    ]


@reader("lists", list_samples, damage_table)
def read_lists(folder, data):
    from resnet_tf.data.image_list import read_list

    for name in ("list.txt", "list.csv"):
        read_list(given(folder, name, data))


# What runs write.

ROW = "{},{:.4f},0.1,1.5,0.01,0.5,1.4,0.5,,,900.0,0.1,{}.0"


def run_samples(folder):
    from resnet_tf.config import make_config

    settings = make_config("he2015", model="resnet8_v2", dataset="shapes", iterations=20).settings()
    settings |= {"data.source": "built-in", "data.fingerprint": "0", "precision": "float32", "threads": 1}
    test = {"loss": 1.0, "top1": 0.5, "top5": 0.9, "images": 10, "per_class": [0.5, None], "confusion": [[1]]}
    report = {
        **dict.fromkeys(("parameters", "iterations", "train_images", "validation_images", "steps_per_epoch"), 20),
        "settings": settings,
        "training": {"seconds": 1.0, "median_images_per_second": 10.0, "last_validation_accuracy": 0.5},
        "test": test,
        "best": {"iteration": 10, "validation_accuracy": 0.5, "test": test},
        "device": "a machine",
        "versions": {"tensorflow": "2", "keras": "3"},
    }
    (folder / "run").mkdir(exist_ok=True)
    write_run(folder / "run", settings, report)
    return [json.dumps(settings).encode(), json.dumps(report).encode()]


def write_run(place, settings, report):
    from resnet_tf.training.logs import COLUMNS

    (place / "settings.json").write_text(json.dumps(settings))
    (place / "report.json").write_text(json.dumps(report))
    rows = [ROW.format(step, step / 10, step) for step in (10, 20)]
    (place / "metrics.csv").write_text("\n".join((",".join(COLUMNS), *rows, "")))


@reader("run-json", run_samples, damage_json)
def read_run_json(folder, data):
    from resnet_tf.cli.compare import compare_table
    from resnet_tf.errors import UserError
    from resnet_tf.training.logs import read_history
    from resnet_tf.training.run_dir import RunDir, check_resumable, describe_report

    settings = json.loads(read_run_json.samples[0])
    for name, whole in zip(("settings.json", "report.json"), read_run_json.samples, strict=True):
        given(folder / "run", name, data)
        run = RunDir(folder / "run")

        def resume(run=run):
            check_resumable(run, run.settings(), settings)
            describe_report(run.report(), run.path)

        for call in (resume, lambda: compare_table([folder / "run"]), lambda: read_history(folder / "run")):
            with contextlib.suppress(UserError):
                call()
        given(folder / "run", name, whole)


def metrics_samples(folder):
    run_samples(folder)
    (folder / "run" / "iterations.bin").write_bytes(np.ones(60, "<f4").tobytes())
    return [(folder / "run" / "metrics.csv").read_bytes()]


@reader("metrics", metrics_samples, damage_table)
def read_metrics_csv(folder, data):
    from resnet_tf.cli.compare import compare_table
    from resnet_tf.training.logs import read_history

    given(folder / "run", "metrics.csv", data)
    compare_table([folder / "run"])
    read_history(folder / "run")


def sidecar_samples(folder):
    framing = {"resize": 36, "height": 32, "width": 32}
    shown = {"shape": [32, 32, 3], "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}
    names = {"class_names": ["cat", "dog"], "dataset": "shapes", "on_bad_image": "stop", "builder": {"width": 1}}
    return [
        json.dumps({**names, "preprocessing": {**shown, **more}}).encode()
        for more in ({"framing": framing}, {"resize": 256, "crop": 32}, {})
    ]


@reader("sidecars", sidecar_samples, damage_json)
def read_sidecars(folder, data):
    from resnet_tf.prediction import class_table, crop_of
    from resnet_tf.saving import read_sidecar

    given(folder, "model.json", data)
    sidecar = read_sidecar(folder / "model.keras")
    class_table(sidecar, 2)
    for shape in ((None, 32, 32, 3), (None, None, None, 3)):
        crop_of(shape, sidecar, None, None)(np.zeros((20, 30, 3), np.uint8))


class Variable:
    """As much of a Keras variable as checkpoints need."""

    def __init__(self, value):
        self.value, self.shape, self.dtype = value, value.shape, value.dtype.name

    def assign(self, value):
        assert value.shape == self.shape

    def __array__(self, dtype=None, copy=None):
        return self.value


def checkpoint_parts(folder):
    from resnet_tf.training.checkpoint import CheckpointManager, TrainState
    from resnet_tf.training.distribute import Distribution
    from resnet_tf.training.run_dir import RunDir
    from resnet_tf.training.schedule import Schedule

    run_samples(folder)
    from resnet_tf.recipes import Recipe

    variables = {"model/a": Variable(np.ones((2, 3), np.float32)), "optimizer/n": Variable(np.asarray(3, np.int64))}
    lines = []
    manager = CheckpointManager(RunDir(folder / "run"), lines.append, Distribution())
    from resnet_tf.training.logs import read_metrics

    state = TrainState(20, read_metrics(folder / "run"), {"iteration": 10, "validation_accuracy": 0.5})
    state.schedule = Schedule(Recipe("", ""), 20).state
    return manager, variables, state


def checkpoint_samples(folder):
    manager, variables, state = checkpoint_parts(folder)
    manager.open_step_log(0)
    manager.log_steps(np.ones((20, 3), np.float32))
    manager.save(variables, state)
    read_checkpoints.manager, read_checkpoints.variables = manager, variables
    return [(folder / "run" / "checkpoints" / "step-000000020.npz").read_bytes()]


def damage_state(rng, content):
    """The .npy of a state, whose JSON is damaged and whose header is right."""
    start = content.find(b"\n") + 1
    text = damage_json(rng, content[start:])
    file = io.BytesIO()
    np.save(file, np.frombuffer(text, np.uint8))
    return file.getvalue()


damage_checkpoint = functools.partial(damage_zip, inner={"state.json.npy": damage_state})


@reader("checkpoints", checkpoint_samples, damage_checkpoint)
def read_checkpoints(folder, data):
    place = folder / "run" / "checkpoints"
    for path in place.iterdir():
        path.unlink()
    given(place, "step-000000020.npz", data)
    (place / "step-000000020.sha256").write_text(hashlib.sha256(data).hexdigest())
    read_checkpoints.manager.load(read_checkpoints.variables)


# Keras models.


def keras_samples(folder):
    import keras

    from resnet_tf.saving import write_keras

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(x))
    write_keras(keras.Model(inputs, keras.layers.Dense(3)(x)), folder / "sample.keras")
    return [(folder / "sample.keras").read_bytes()]


damage_keras = functools.partial(damage_zip, inner={"config.json": damage_json, "metadata.json": damage_json})


@reader("keras", keras_samples, damage_keras)
def read_keras(folder, data):
    from resnet_tf.saving import load_model

    load_model(given(folder, "case.keras", data))
