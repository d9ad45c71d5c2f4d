import csv
import json

import cv2
import keras
import numpy as np
import pytest

from resnet_tf.cli.main import main
from resnet_tf.cli.predict import framing_of
from resnet_tf.errors import UserError
from resnet_tf.predict import Framing, UnreadableImageError, centre_crop, find_images, predict_files, read_image

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


def test_decoding_keeps_the_order_of_the_channels(tmp_path):
    pixels = halves(10, 20, RED, BLUE)
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.png", pixels)), pixels)
    assert read_image(tmp_path / "a.png", channels=1).shape == (10, 20, 1)


def test_the_orientation_is_respected(tmp_path):
    """6: the camera was turned, the first row of the file is the right side of the picture (EXIF 2.3, tag 0x0112)."""
    path = with_orientation(write(tmp_path / "a.jpg", halves(32, 64, RED, BLUE)), 6)
    pixels = read_image(path)
    assert pixels.shape == (64, 32, 3)
    assert pixels[:24].mean((0, 1)).argmax() == 0
    assert pixels[40:].mean((0, 1)).argmax() == 2


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [("a.jpg", b"", "empty"), ("a.png", b"hello", "no image"), ("none.jpg", None, "No such file")],
)
def test_unreadable_files(tmp_path, name, data, reason):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UnreadableImageError, match=reason):
        read_image(tmp_path / name)
    with pytest.raises(UnreadableImageError):
        read_image(tmp_path)


def test_truncated_images(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = write(tmp_path / "a.png", noise).read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableImageError, match="no image, or a damaged one"):
        read_image(tmp_path / "a.png")


def test_a_gigantic_picture_is_refused_before_memory_is_taken(tmp_path, python):
    """A GIF of a few bytes whose header says 20,000 x 20,000 pixels, 1.2 GB."""
    side = (20000).to_bytes(2, "little")
    head = b"GIF89a" + 2 * side + b"\x80\0\0" + bytes(3) + b"\xff" * 3
    (tmp_path / "a.gif").write_bytes(head + b"," + bytes(4) + 2 * side + b"\0\x02\x02L\x01\0;")
    result = python(
        "import resource, sys; from pathlib import Path\n"
        "from resnet_tf.predict import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_image(Path(sys.argv[1]))\n"
        "except Exception as error: print(error)\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000",
        tmp_path / "a.gif",
    )
    assert (result.returncode, result.stdout) == (0, "too large\n")


def test_the_centre_is_cut_out():
    pixels = np.zeros((375, 500, 3), np.uint8)
    pixels[:, :, 0] = np.arange(500) // 2
    pixels[:, :, 1] = np.arange(375)[:, None] // 2
    crop = centre_crop(pixels, Framing(256, 224, 224))
    assert crop.shape == (224, 224, 3)
    # 375 rows become 256; of those the middle 224 are rows 23 to 351 of the original, and columns 86 to 414.
    np.testing.assert_allclose(crop[100, [0, -1], 0], [86 / 2, 414 / 2], atol=1)
    np.testing.assert_allclose(crop[[0, -1], 100, 1], [23 / 2, 351 / 2], atol=1)


def test_a_picture_of_the_right_size_stays_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(centre_crop(pixels, Framing(32, 32, 32)), pixels)
    wide = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    np.testing.assert_array_equal(centre_crop(wide, Framing(40, 32, 32)), wide[4:36, 14:46])


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 30000, 3), (7, 5, 1), (3000, 2, 3)])
@pytest.mark.parametrize("framing", [Framing(256, 224, 224), Framing(40, 24, 32)])
def test_pictures_of_any_proportions(shape, framing):
    crop = centre_crop(np.full(shape, 7, np.uint8), framing)
    assert crop.shape == (framing.height, framing.width, shape[2])
    assert np.all(crop == 7)


def test_files_folders_and_patterns(tmp_path):
    names = ["b.png", "a.jpg", "sub/c.JPEG", "notes.txt"]
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"")
    found = find_images([str(tmp_path)])
    assert [str(p.relative_to(tmp_path)) for p in found] == ["a.jpg", "b.png", "sub/c.JPEG"]
    assert find_images([str(tmp_path / "b.png"), str(tmp_path / "*.*g")]) == [tmp_path / "b.png", tmp_path / "a.jpg"]
    assert find_images([str(tmp_path / "notes.txt"), "missing.jpg"])[0].name == "notes.txt"
    for nothing in ("*.gif", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="holds no image files"):
            find_images([str(tmp_path / nothing)])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 64])
def test_batches_keep_order_and_leave_out_the_unreadable(tmp_path, batch_size):
    paths = [write(tmp_path / f"{i}.png", np.full((8, 8, 3), i, np.uint8)) for i in range(11)]
    for bad in (0, 4, 5, 10):
        paths[bad].write_bytes(b"bad")
    sizes = []

    def probabilities(pixels):
        sizes.append(len(pixels))
        return np.stack([pixels[:, 0, 0, 0], 100 - pixels[:, 0, 0, 0]], axis=1) / 100

    found = list(predict_files(paths, probabilities, Framing(8, 8, 8), top=1, batch_size=batch_size))
    assert [p.path for p in found] == paths
    assert [i for i, p in enumerate(found) if p.unreadable] == [0, 4, 5, 10]
    readable = [round(p.probabilities[0], 2) for p in found if p.unreadable is None]
    assert readable == [0.99, 0.98, 0.97, 0.94, 0.93, 0.92, 0.91]
    assert all(p.classes == (1,) for p in found if p.unreadable is None)
    assert sum(sizes) == 7
    assert all(size == batch_size for size in sizes[:-1])


def test_decoding_goes_on_while_the_network_runs(tmp_path, monkeypatch):
    """When the first batch reaches the network, the next ones are being read; it waits until they are."""
    import threading

    from resnet_tf import predict

    paths = [write(tmp_path / f"{i}.png", np.zeros((8, 8, 3), np.uint8)) for i in range(12)]
    second_batch_read = threading.Event()
    read = predict.read_image

    def watched(path, channels):
        if path == paths[7]:
            second_batch_read.set()
        return read(path, channels)

    monkeypatch.setattr(predict, "read_image", watched)

    def probabilities(pixels):
        assert second_batch_read.wait(20)
        return np.ones((len(pixels), 2))

    assert len(list(predict_files(paths, probabilities, Framing(8, 8, 8), batch_size=4))) == 12


def test_the_framing_of_a_model():
    assert framing_of((None, 224, 224, 3), {}, None, None) == Framing(256, 224, 224)
    assert framing_of((None, 32, 32, 3), {}, None, None) == Framing(32, 32, 32)
    assert framing_of((None, None, None, 3), {}, None, None) == Framing(256, 224, 224)
    small, known = {"preprocessing": {"shape": [32, 32, 3]}}, {"preprocessing": {"resize": 80, "crop": 64}}
    assert framing_of((None, None, None, 3), small, None, None) == Framing(32, 32, 32)
    assert framing_of((None, 64, 64, 3), known, None, None) == Framing(80, 64, 64)
    assert framing_of((None, None, None, 3), {}, 300, 288) == Framing(300, 288, 288)
    assert framing_of((None, None, None, 3), {}, None, 288) == Framing(329, 288, 288)
    with pytest.raises(UserError, match="--crop 200 does not fit the model, which takes 224x224"):
        framing_of((None, 224, 224, 3), {}, None, 200)
    with pytest.raises(UserError, match="--resize 200 is smaller than the crop"):
        framing_of((None, 224, 224, 3), {}, 200, None)


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


def test_unreadable_files_are_named_skipped_and_counted(brightest_channel, tmp_path, capsys):
    good = write(tmp_path / "good.png", np.full((30, 30, 3), RED, np.uint8))
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    names = [str(tmp_path / "bad.jpg"), str(good), str(tmp_path / "missing.png")]
    assert main(["predict", str(brightest_channel), *names, "--json", str(tmp_path / "o.json")]) == 1
    captured = capsys.readouterr()
    assert "  red 0.576" in captured.out
    assert f"{names[0]} could not be read: no image, or a damaged one" in captured.err
    assert f"{names[2]} could not be read: No such file or directory" in captured.err
    assert captured.err.endswith("2 of 3 files could not be read\n")
    assert len(json.loads((tmp_path / "o.json").read_text())["unreadable"]) == 2


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
    for name, message in (("two", "1 or 3 channels"), ("map", "the (batch, classes) of a classifier")):
        assert main(["predict", str(tmp_path / f"{name}.keras"), str(image)]) == 2
        assert message in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "none.keras"), str(image)]) == 2
    assert "none.keras does not exist" in capsys.readouterr().err
