import json
import os
import re
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from resnet_tf.data import image_check
from resnet_tf.data.image_check import check_images, open_image_dataset
from resnet_tf.data.image_folder import ImageFiles, read_folder
from resnet_tf.data.image_io import cv2
from resnet_tf.data.image_list import read_list
from resnet_tf.data.loader import FileSource
from resnet_tf.errors import UserError
from tests.test_images import CMYK, encoded, exif

GOOD = 6


def drawing(seed, height=24, width=32):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def jpeg_of(seed, *options):
    return encoded(".jpg", drawing(seed), *options)


def clean_tree(root):
    """Two classes of three images each."""
    for i in range(GOOD):
        write(root / ("cat", "dog")[i % 2] / f"{i}.jpg", jpeg_of(i))
    return root


@pytest.fixture
def ill_tree(tmp_path):
    """All that can go wrong with a tree, and what only looks as if it did; with what becomes of each."""
    root = clean_tree(tmp_path / "data")
    whole = jpeg_of(50)
    write(root / "cat/empty.jpg", b"")
    write(root / "cat/text.jpg", b"not an image, whatever it is called")
    write(root / "cat/truncated.jpg", whole[: len(whole) // 2])
    write(root / "cat/damaged.png", encoded(".png", drawing(57))[:500])
    write(root / "cat/phone.heic", b"\0\0\0\x18ftypheic" + bytes(100))
    write(root / "dog/sixteen.png", encoded(".png", drawing(51).astype(np.uint16) * 257))
    write(root / "dog/gray.jpg", encoded(".jpg", drawing(52)[..., 0]))
    write(root / "dog/rgba.png", cv2.imencode(".png", np.dstack([drawing(53), drawing(54)[..., :1]]))[1].tobytes())
    write(root / "dog/cmyk.jpg", CMYK)
    write(root / "dog/turned.jpg", whole[:2] + exif(6) + whole[2:])
    write(root / "dog/folder.jpg/inside.jpg", jpeg_of(55))
    write(root / "dog/copy.jpg", jpeg_of(0))
    write(root / "lonely/only.jpg", jpeg_of(56))
    (root / "empty class").mkdir()
    (root / "dog/loop").symlink_to(root)
    (root / "dog/loop.jpg").symlink_to(root / "dog/loop.jpg")
    return root


FINE = (
    "dog/sixteen.png",
    "dog/gray.jpg",
    "dog/rgba.png",
    "dog/cmyk.jpg",
    "dog/turned.jpg",
    "dog/folder.jpg/inside.jpg",
)


def test_everything_that_can_be_wrong_with_a_tree(monkeypatch, ill_tree):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # with it, the picture is damaged
    found = read_folder(ill_tree)
    result = check_images(found, on_bad="skip")
    said = {issue.where.removeprefix(f"{ill_tree}/"): str(issue).split(" (", 1)[1] for issue in result.issues}
    assert said == {
        "cat/empty.jpg": "empty)",
        "cat/text.jpg": "no image)",
        "cat/truncated.jpg": "truncated)",
        "cat/damaged.png": "damaged or truncated)",
        "cat/phone.heic": "HEIC, which is read after pip install 'resnet_tf[heif]')",
        "dog/copy.jpg": f"copy of {ill_tree}/cat/0.jpg, which is of class cat)",
        "dog/loop.jpg": "unreadable Too many levels of symbolic links)",
        "class empty class": "without training images)",
        "lonely/only.jpg": "the only training image of class lonely)",
    }
    assert result.counts()["no image"] == 1
    kept = result.kept["train"]
    assert kept.class_names == ("cat", "dog", "lonely")
    classes = [kept.class_names[label] for label in kept.labels]
    names = {os.path.relpath(path, ill_tree): name for path, name in zip(kept.paths, classes, strict=True)}
    assert names == {
        **{f"{('cat', 'dog')[i % 2]}/{i}.jpg": ("cat", "dog")[i % 2] for i in range(GOOD)},
        **dict.fromkeys(FINE, "dog"),
        "lonely/only.jpg": "lonely",
    }


def test_what_is_kept_decodes_to_rgb(ill_tree):
    kept = check_images(read_folder(ill_tree), on_bad="skip").kept["train"]
    source = FileSource(kept)
    shapes = {os.path.relpath(path, ill_tree): source.image(i).shape for i, path in enumerate(kept.paths)}
    assert len(source) == len(kept) == GOOD + len(FINE) + 1
    assert shapes.pop("dog/turned.jpg") == (32, 24, 3)
    assert shapes.pop("dog/cmyk.jpg") == (16, 16, 3)
    assert set(shapes.values()) == {(24, 32, 3)}
    sixteen = source.image(kept.paths.index(str(ill_tree / "dog/sixteen.png")))
    np.testing.assert_array_equal(sixteen, drawing(51))


def test_stop_says_all_in_one_line(ill_tree):
    for i in range(5):
        write(ill_tree / f"cat/more\n{i}.jpg", b"")
    with pytest.raises(UserError) as caught:
        check_images(read_folder(ill_tree))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(
        f"14 problems among {GOOD + 14 + 5} images: {ill_tree}/cat/damaged.png (damaged or truncated); "
    )
    assert message.count("; ") == 9 + 1 + 1
    assert "; …; fix or remove the files, or pass on_bad_image='skip'" in message
    assert r"cat/more\n0.jpg (empty)" in message


def test_a_clean_tree_is_kept_as_it_is(tmp_path, capfd):
    found = read_folder(clean_tree(tmp_path))
    result = check_images(found)
    assert result.issues == ()
    assert result.kept["train"].paths == found["train"].paths
    np.testing.assert_array_equal(result.kept["train"].labels, [0, 0, 0, 1, 1, 1])
    assert capfd.readouterr() == ("", "")


def test_what_decoders_say_of_files_that_they_bear_with_is_not_shown(tmp_path, python):
    png = encoded(".png", drawing(1))
    profile = b"iCCPx\0\0" + zlib.compress(b"no profile")
    chunk = struct.pack(">I", len(profile) - 4) + profile + struct.pack(">I", zlib.crc32(profile))
    write(clean_tree(tmp_path) / "cat/profile.png", png[:33] + chunk + png[33:])
    scan = (
        "import sys; from resnet_tf.data.image_check import check_images as check, read_bytes, decode_image\n"
        "from resnet_tf.data.image_folder import read_folder\n"
        "files = read_folder(sys.argv[1])\n"
        "print(len(check(files).issues)) if sys.argv[2] else decode_image(read_bytes(sys.argv[1] + '/cat/profile.png'))"
    )
    assert "iCCP" in python(scan, tmp_path, "").stderr
    result = python(scan, tmp_path, "check")
    assert (result.stdout, result.stderr) == ("0\n", "")


@pytest.fixture
def unprivileged():
    """A folder of a user for whom file modes count: root reads everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        if root:
            os.seteuid(0)


def test_files_without_the_right_to_read(unprivileged):
    root = clean_tree(unprivileged)
    (root / "cat/0.jpg").chmod(0)
    cache = root / "verdicts.json"
    problem = "0.jpg (unreadable Permission denied)"
    assert [str(p).endswith(problem) for p in check_images(read_folder(root), on_bad="skip", cache=cache).issues] == [
        True
    ]
    # Granting the right changes neither size nor time.
    (root / "cat/0.jpg").chmod(0o600)
    assert check_images(read_folder(root), cache=cache).issues == ()
    (root / "dog").chmod(0)
    with pytest.raises(UserError, match=r"dog cannot be read \(Permission denied\)"):
        read_folder(root)
    (root / "dog").chmod(0o700)


def splits_of(tmp_path, **lists):
    for split, lines in lists.items():
        (tmp_path / split).write_text("\n".join(lines))
    return read_list(*(tmp_path / split for split in lists))


def test_of_copies_in_several_splits_the_one_of_the_test_images_stays(tmp_path):
    clean_tree(tmp_path)
    write(tmp_path / "again.jpg", jpeg_of(0))
    found = splits_of(
        tmp_path,
        train=["cat/0.jpg cat", "cat/2.jpg cat", "dog/1.jpg dog", "dog/1.jpg dog", "cat/4.jpg cat", "dog/3.jpg dog"],
        valid=["cat/2.jpg cat", "dog/5.jpg dog", "dog/3.jpg dog"],
        test=["again.jpg cat", "dog/3.jpg dog"],
    )
    result = check_images(found, on_bad="skip")
    kept = {split: [os.path.relpath(p, tmp_path) for p in files.paths] for split, files in result.kept.items()}
    assert kept == {
        "train": ["dog/1.jpg", "cat/4.jpg"],
        "validation": ["cat/2.jpg", "dog/5.jpg"],
        "test": ["again.jpg", "dog/3.jpg"],
    }
    assert result.counts() == {"copy": 5, "the only training image": 2}


def test_classes_without_training_images_leave_all_splits_and_the_others_move_up(tmp_path):
    clean_tree(tmp_path)
    write(tmp_path / "x.jpg", b"")
    found = splits_of(
        tmp_path,
        train=["x.jpg bat", "cat/0.jpg cat", "cat/2.jpg cat", "dog/1.jpg dog", "dog/3.jpg dog"],
        valid=["cat/4.jpg bat", "dog/5.jpg dog"],
    )
    assert found["train"].labels.tolist() == [0, 1, 1, 2, 2]
    kept = check_images(found, on_bad="skip").kept
    assert kept["train"].class_names == kept["validation"].class_names == ("cat", "dog")
    assert kept["train"].labels.tolist() == [0, 0, 1, 1]
    assert (kept["validation"].labels.tolist(), len(kept["validation"].paths)) == ([1], 1)
    assert kept["train"].labels.dtype == np.int32


def test_too_little_to_train_on(tmp_path):
    clean_tree(tmp_path)
    write(tmp_path / "x.jpg", b"")
    found = splits_of(tmp_path, train=["cat/0.jpg cat", "cat/2.jpg cat", "x.jpg dog"])
    with pytest.raises(UserError, match=r"2 of 3 training images can be used, of 1 classes"):
        check_images(found, on_bad="skip")


def test_images_to_evaluate_on_need_no_classes_filled(tmp_path):
    found = {"test": read_folder(clean_tree(tmp_path), ["ant", "cat", "dog"])["train"]}
    result = check_images(found)
    assert result.kept["test"].class_names == ("ant", "cat", "dog")
    assert result.issues == ()


@pytest.fixture
def counted(monkeypatch):
    """The files that are decoded."""
    from resnet_tf.data import image_check as module

    decoded = []
    check_image = module.check_image
    monkeypatch.setattr(module, "check_image", lambda path: decoded.append(Path(path).name) or check_image(path))
    return decoded


def test_verdicts_are_kept_until_a_file_changes(ill_tree, tmp_path, counted):
    cache = tmp_path / "cache" / "verdicts.json"
    first = check_images(read_folder(ill_tree), on_bad="skip", cache=cache)
    counted.clear()
    again = check_images(read_folder(ill_tree), on_bad="skip", cache=cache)
    # What could not be read is tried again.
    assert sorted(counted) == ["empty.jpg", "loop.jpg"]
    assert (again.issues, again.fingerprints) == (first.issues, first.fingerprints)
    counted.clear()
    write(ill_tree / "cat/0.jpg", jpeg_of(60))
    os.utime(ill_tree / "cat/2.jpg", ns=(1, 1))
    check_images(read_folder(ill_tree), on_bad="skip", cache=cache)
    assert sorted(counted) == ["0.jpg", "2.jpg", "empty.jpg", "loop.jpg"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[1, 2]",
        lambda text: "null",
        lambda text: text.replace('"version":3', '"version":0'),
        lambda text: text.replace('"opencv":"', '"opencv":"0'),
        lambda text: json.dumps({**json.loads(text), "files": [1]}),
        lambda text: re.sub(r'"[0-9a-f]{32}"', "3", text),
        lambda text: re.sub(r'"[0-9a-f]{32}",', "", text),
    ],
)
def test_a_damaged_cache_is_ignored_and_replaced(tmp_path, counted, damage):
    root, cache = clean_tree(tmp_path / "data"), tmp_path / "verdicts.json"
    check_images(read_folder(root), cache=cache)
    good = cache.read_text()
    cache.write_text(damage(good))
    counted.clear()
    assert check_images(read_folder(root), cache=cache).issues == ()
    assert len(counted) == GOOD
    assert json.loads(cache.read_text()) == json.loads(good)


def test_the_classes_are_told_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "cache"))
    for split in ("training_set", "test_set"):
        clean_tree(tmp_path / "data" / split)
    for i in range(GOOD):
        write(tmp_path / "data/test_set" / ("cat", "dog")[i % 2] / f"{i}.jpg", jpeg_of(90 + i))
    log = []
    open_image_dataset(f"folder:{tmp_path / 'data'}", "stop", log.append)
    assert log == ["own images: 6 for test, 6 for train; 2 classes (cat, dog)"]


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path):
    root = clean_tree(tmp_path / "data")
    assert check_images(read_folder(root), cache=root / "cat/0.jpg" / "verdicts.json").issues == ()


def test_an_interrupted_check_keeps_what_it_found(tmp_path, monkeypatch):
    from resnet_tf.data import image_check as module

    root, cache = clean_tree(tmp_path / "data"), tmp_path / "verdicts.json"
    check_image = module.check_image

    def interrupted(path):
        if path.endswith("dog/5.jpg"):
            raise KeyboardInterrupt
        return check_image(path)

    monkeypatch.setattr(module, "check_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_images(read_folder(root), cache=cache, threads=1)
    assert len(json.loads(cache.read_text())["files"]) == GOOD - 1


def test_the_fingerprint_is_of_content_labels_and_names(tmp_path):
    def of(root, labels=(0, 0, 0, 1, 1, 1), names=("cat", "dog")):
        return check_images(
            {"train": ImageFiles(read_folder(root)["train"].paths, np.array(labels), names)}
        ).fingerprints["train"]

    one, two = clean_tree(tmp_path / "one"), clean_tree(tmp_path / "two")
    assert len(of(one)) == 64
    assert of(one) == of(two)
    changed = {of(one), of(one, names=("a", "b")), of(one, labels=(0, 0, 1, 1, 1, 0))}
    write(two / "cat/0.jpg", jpeg_of(70))
    assert len(changed | {of(two)}) == 4


def test_a_bar_shows_on_a_terminal(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    check_images(read_folder(clean_tree(tmp_path)))
    shown = capfd.readouterr().err
    assert "checking" in shown
    assert f"{GOOD}/{GOOD}" in shown


def test_threads_and_chunks_do_not_change_the_outcome(ill_tree):
    paths = {path for files in read_folder(ill_tree).values() for path in files.paths}
    whole = image_check._check_files(paths, image_check.CheckCache(None), None)
    assert whole.keys() == paths
    for threads, chunk in ((1, 1), (8, 2), (2, 100)):
        assert image_check._check_files(paths, image_check.CheckCache(None), threads, chunk) == whole


def test_a_file_that_goes_away_after_the_check(tmp_path):
    root = clean_tree(tmp_path)
    source = FileSource(check_images(read_folder(root)).kept["train"])
    (root / "cat/2.jpg").unlink()
    assert source.image(0).shape == (24, 32, 3)
    with pytest.raises(UserError, match=r"cat/2.jpg cannot be decoded \(unreadable: No such file"):
        source.image(1)
