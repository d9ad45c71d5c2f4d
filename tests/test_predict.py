import csv
import json
import struct
import sys
import threading
import zlib

import cv2
import keras
import numpy as np
import pytest

from resnet_tf.cli.main import main
from resnet_tf.data.image_io import UnreadableImageError
from resnet_tf.data.transforms import ResizeCenterCrop
from resnet_tf.errors import UserError
from resnet_tf.prediction import classify, crop_of, expand_patterns

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def write(path, pixels):
    """Write RGB pixels by OpenCV, which takes BGR."""
    assert cv2.imwrite(str(path), np.ascontiguousarray(pixels[..., ::-1]))
    return path


def halves(height, width, left, right):
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = left, right
    return pixels


def with_orientation(path, orientation):
    """Put an EXIF segment with this orientation behind the first two bytes of a JPEG file."""
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + orientation.to_bytes(2, "big") + b"\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(tiff) + 8).to_bytes(2, "big") + b"Exif\0\0" + tiff
    data = path.read_bytes()
    path.write_bytes(data[:2] + segment + data[2:])
    return path


def claiming(path, side):
    """Write a PNG file of 57 bytes whose header says side x side RGB pixels (PNG specification, 11.2.2)."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    framed = (struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    return path


@pytest.fixture
def brightest_channel(tmp_path):
    """A model of 24x24 pixels that says which of red, green and blue there is most of."""
    inputs = keras.Input((24, 24, 3))
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(inputs)
    outputs = keras.layers.Dense(3, use_bias=False, kernel_initializer="identity")(
        keras.layers.GlobalAveragePooling2D()(x)
    )
    path = tmp_path / "model.keras"
    keras.Model(inputs, outputs).save(path)
    path.with_suffix(".json").write_text(json.dumps({"class_names": ["red", "green", "blue"]}))
    return path


def test_the_network_sees_the_picture_turned_and_in_rgb(tmp_path):
    """6: the camera was turned, the first row of the file is the right side of the picture (EXIF 2.3, tag 0x0112)."""
    path = with_orientation(write(tmp_path / "a.jpg", halves(32, 64, RED, BLUE)), 6)
    seen = []

    def probabilities(pixels):
        seen.append(pixels)
        return np.ones((len(pixels), 2))

    ((name, row),) = classify([path], probabilities, ResizeCenterCrop(32, 32, 32))
    assert (name, row.tolist()) == (str(path), [1, 1])
    ((picture,),) = seen
    # The middle 32 of the 64 rows: 16 red ones over 16 blue ones.
    assert picture[:12].mean((0, 1)).argmax() == 0
    assert picture[20:].mean((0, 1)).argmax() == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads the most memory ever reserved from /proc")
@pytest.mark.parametrize("first", ["", "import cv2"])
def test_a_gigantic_picture_is_refused_before_memory_is_taken(tmp_path, python, first):
    # 30 GB and 1.2 GB; by itself, OpenCV refuses only what has more than 2**30 pixels.
    files = [claiming(tmp_path / f"{side}.png", side) for side in (100_000, 20_000)]
    result = python(
        f"{first}\n"
        "import sys; from pathlib import Path\n"
        "from resnet_tf.data.image_io import UnreadableImageError, read_image\n"
        "def most(): return int(Path('/proc/self/status').read_text().split('VmPeak:')[1].split()[0])\n"
        "for file in sys.argv[1:]:\n"
        "    before = most()\n"
        "    try: read_image(file)\n"
        "    except UnreadableImageError as why: print(file, why)\n"
        "    assert most() - before < 500_000, most() - before",
        *files,
    )
    assert (result.returncode, result.stdout) == (0, "".join(f"{file} too large\n" for file in files)), result.stderr


def test_the_centre_is_cut_out():
    pixels = np.zeros((375, 500, 3), np.uint8)
    pixels[:, :, 0] = np.arange(500) // 2
    pixels[:, :, 1] = np.arange(375)[:, None] // 2
    crop = ResizeCenterCrop(256, 224, 224)(pixels)
    assert crop.shape == (224, 224, 3)
    # 375 rows become 256; of those the middle 224 are rows 23 to 351 of the original, and columns 86 to 414.
    np.testing.assert_allclose(crop[100, [0, -1], 0], [86 / 2, 414 / 2], atol=1)
    np.testing.assert_allclose(crop[[0, -1], 100, 1], [23 / 2, 351 / 2], atol=1)


def test_a_picture_of_the_right_size_stays_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(ResizeCenterCrop(32, 32, 32)(pixels), pixels)
    wide = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    np.testing.assert_array_equal(ResizeCenterCrop(40, 32, 32)(wide), wide[4:36, 14:46])


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 30000, 3), (7, 5, 1), (3000, 2, 3)])
@pytest.mark.parametrize("framing", [ResizeCenterCrop(256, 224, 224), ResizeCenterCrop(40, 24, 32)])
def test_pictures_of_any_proportions(shape, framing):
    crop = framing(np.full(shape, 7, np.uint8))
    assert crop.shape == (framing.height, framing.width, shape[2])
    assert np.all(crop == 7)


def test_files_folders_and_patterns(tmp_path):
    names = ["b.png", "a.jpg", "sub/c.JPEG", "d.heic", "notes.txt"]
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"")
    found = expand_patterns([str(tmp_path)])
    assert [str(p.relative_to(tmp_path)) for p in found] == ["a.jpg", "b.png", "d.heic", "sub/c.JPEG"]
    for left_out in ("._a.jpg", ".ipynb_checkpoints/a.jpg", "__MACOSX/a.jpg", "__MACOSX/sub/._c.JPEG"):
        (tmp_path / left_out).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / left_out).write_bytes(b"")
    assert expand_patterns([str(tmp_path)]) == found
    assert expand_patterns([str(tmp_path / "b.png"), str(tmp_path / "*.*g")]) == [
        tmp_path / "b.png",
        tmp_path / "a.jpg",
    ]
    assert expand_patterns([str(tmp_path / "notes.txt"), "missing.jpg"])[0].name == "notes.txt"
    for nothing in ("*.gif", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="holds no image files"):
            expand_patterns([str(tmp_path / nothing)])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 64])
def test_batches_keep_order_and_leave_out_the_unreadable(tmp_path, batch_size):
    paths = [write(tmp_path / f"{i}.png", np.full((8, 8, 3), i, np.uint8)) for i in range(11)]
    for bad in (0, 4, 5, 10):
        paths[bad].write_bytes(b"bad")
    sizes = []

    def probabilities(pixels):
        sizes.append(len(pixels))
        return np.stack([pixels[:, 0, 0, 0], 100 - pixels[:, 0, 0, 0]], axis=1) / 100

    names, rows = zip(*classify(paths, probabilities, ResizeCenterCrop(8, 8, 8), batch_size=batch_size), strict=True)
    assert list(names) == [str(path) for path in paths]
    assert [i for i, row in enumerate(rows) if isinstance(row, UnreadableImageError)] == [0, 4, 5, 10]
    readable = [row for row in rows if not isinstance(row, UnreadableImageError)]
    assert [round(row[1], 2) for row in readable] == [0.99, 0.98, 0.97, 0.94, 0.93, 0.92, 0.91]
    assert all(row.argmax() == 1 for row in readable)
    assert sum(sizes) == 7
    assert all(size == batch_size for size in sizes[:-1])


def test_decoding_goes_on_while_the_network_runs(tmp_path):
    """When the first batch reaches the network, the next ones are being read; it waits until they are."""
    second_batch_read = threading.Event()

    class Watched(type(tmp_path)):
        def __fspath__(self):
            second_batch_read.set()
            return super().__fspath__()

    paths = [write(tmp_path / f"{i}.png", np.zeros((8, 8, 3), np.uint8)) for i in range(12)]
    paths[7] = Watched(paths[7])
    second_batch_read.clear()

    def probabilities(pixels):
        assert second_batch_read.wait(20)
        return np.ones((len(pixels), 2))

    assert len(list(classify(paths, probabilities, ResizeCenterCrop(8, 8, 8), batch_size=4))) == 12


def test_the_framing_of_a_model():
    assert crop_of((None, 224, 224, 3), {}, None, None) == ResizeCenterCrop(256, 224, 224)
    assert crop_of((None, 32, 32, 3), {}, None, None) == ResizeCenterCrop(32, 32, 32)
    assert crop_of((None, None, None, 3), {}, None, None) == ResizeCenterCrop(256, 224, 224)
    small, known = {"preprocessing": {"shape": [32, 32, 3]}}, {"preprocessing": {"resize": 80, "crop": 64}}
    assert crop_of((None, None, None, 3), small, None, None) == ResizeCenterCrop(32, 32, 32)
    assert crop_of((None, 64, 64, 3), known, None, None) == ResizeCenterCrop(80, 64, 64)
    squashed = {"preprocessing": {"framing": {"resize": None, "height": 64, "width": 64}}}
    assert crop_of((None, 64, 64, 3), squashed, None, None) == ResizeCenterCrop(None, 64, 64)
    assert crop_of((None, 64, 64, 3), squashed, 80, None) == ResizeCenterCrop(80, 64, 64)
    assert crop_of((None, None, None, 3), {}, 300, 288) == ResizeCenterCrop(300, 288, 288)
    assert crop_of((None, None, None, 3), {}, None, 288) == ResizeCenterCrop(329, 288, 288)
    with pytest.raises(UserError, match="crop=200 does not fit the model, which takes 224x224"):
        crop_of((None, 224, 224, 3), {}, None, 200)
    with pytest.raises(UserError, match="resize=200 is smaller than the crop"):
        crop_of((None, 224, 224, 3), {}, 200, None)


def test_the_command(brightest_channel, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    write(folder / "blue.png", np.full((50, 70, 3), BLUE, np.uint8))
    write(folder / "green.png", np.full((10, 10, 3), GREEN, np.uint8))
    out = tmp_path / "out.csv"
    files = ["--csv", str(out), "--json", str(tmp_path / "o.json")]
    assert main(["predict", str(brightest_channel), str(folder), "--top", "2", *files]) == 0
    # e / (e + 2) and 1 / (e + 2)
    assert capsys.readouterr().out.splitlines()[:3] == [str(folder / "blue.png"), "  blue 0.576", "  red 0.212"]
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["index"], row["name"]) for row in rows] == [
        ("1", "2", "blue"),
        ("2", "0", "red"),
        ("1", "1", "green"),
        ("2", "0", "red"),
    ]
    assert float(rows[0]["probability"]) == pytest.approx(np.e / (np.e + 2), abs=1e-6)
    result = json.loads((tmp_path / "o.json").read_text())
    assert result["predictions"][1]["classes"][0]["name"] == "green"
    assert result["unreadable"] == []


def test_a_disk_that_refuses_the_predictions(brightest_channel, tmp_path, monkeypatch, capsys):
    def full(path, text):
        raise OSError(28, "No space left on device")

    write(tmp_path / "blue.png", np.full((50, 70, 3), BLUE, np.uint8))
    monkeypatch.setattr("os.replace", full)
    csv_file = str(tmp_path / "out.csv")
    assert main(["predict", str(brightest_channel), str(tmp_path / "blue.png"), "--csv", csv_file]) == 2
    printed = capsys.readouterr()
    assert "blue 0.576" in printed.out
    assert "out.csv cannot be written (No space left on device)" in printed.err


def test_unreadable_files_are_named_skipped_and_counted(brightest_channel, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    cut = write(tmp_path / "cut.jpg", np.full((30, 30, 3), RED, np.uint8))
    cut.write_bytes(cut.read_bytes()[:-2])
    reasons = {
        str(tmp_path / "bad.jpg"): "no image",
        str(cut): "truncated",
        str(claiming(tmp_path / "huge.png", 100_000)): "too large",
        str(tmp_path / "missing.png"): "unreadable: No such file or directory",
    }
    good = write(tmp_path / "good.png", np.full((30, 30, 3), RED, np.uint8))
    output = tmp_path / "o.json"
    assert main(["predict", str(brightest_channel), *reasons, str(good), "--json", str(output)]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{good}\n  red 0.576\n")
    named = [f"{file} is skipped: {reason}" for file, reason in reasons.items()]
    assert captured.err.splitlines() == [*named, "4 of 5 files could not be read"]
    result = json.loads(output.read_text())
    assert result["unreadable"] == [{"file": file, "reason": reason} for file, reason in reasons.items()]
    assert [record["file"] for record in result["predictions"]] == [str(good)]


def test_imagenet_names(tmp_path, capsys):
    inputs = keras.Input((32, 32, 3))
    bias = np.zeros(1000, np.float32)
    bias[258] = 20
    head = keras.layers.Dense(1000, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(bias))
    keras.Model(inputs, head(keras.layers.GlobalAveragePooling2D()(inputs))).save(tmp_path / "m.keras")
    image = write(tmp_path / "dog.png", np.zeros((32, 32, 3), np.uint8))
    assert main(["predict", str(tmp_path / "m.keras"), str(image), "--json", str(tmp_path / "o.json")]) == 0
    assert "  Samoyed 1.000\n" in capsys.readouterr().out
    (record,) = json.loads((tmp_path / "o.json").read_text())["predictions"]
    assert record["classes"][0]["wnid"] == "n02111889"
    assert len(record["classes"]) == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top", "0"], "--top 0 is out of range"),
        (["--batch-size", "0"], "--batch-size 0 is out of range"),
        (["--crop", "30"], "--crop 30 does not fit the model, which takes 24x24"),
        (["--csv", "no/such/folder.csv"], "--csv no/such/folder.csv: the folder does not exist"),
    ],
)
def test_refusals_are_one_line(brightest_channel, tmp_path, capsys, flags, message):
    image = write(tmp_path / "a.png", np.zeros((32, 32, 3), np.uint8))
    assert main(["predict", str(brightest_channel), str(image), *flags]) == 2
    written = capsys.readouterr().err
    assert message in written
    assert written.count("\n") == 1


def test_models_that_cannot_predict(tmp_path, capsys):
    image = write(tmp_path / "a.png", np.zeros((32, 32, 3), np.uint8))
    inputs = keras.Input((8, 8, 2))
    keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs)).save(tmp_path / "two.keras")
    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, keras.layers.ReLU()(inputs)).save(tmp_path / "map.keras")
    for name, message in (
        ("two", "images of 2 channels; only those of 1 or 3 will do"),
        ("map", "the (batch, classes) of a classifier"),
    ):
        assert main(["predict", str(tmp_path / f"{name}.keras"), str(image)]) == 2
        assert message in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "none.keras"), str(image)]) == 2
    assert "none.keras does not exist" in capsys.readouterr().err
