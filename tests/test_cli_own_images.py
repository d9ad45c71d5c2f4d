"""Own images from the command line: train, evaluate and predict, on small trees written from `shapes`."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from resnet_tf.cli import evaluate, predict
from resnet_tf.cli.main import main as resnet_tf
from resnet_tf.cli.train import main, parse_options
from resnet_tf.config import make_config
from resnet_tf.data.dataset import Split, short_name
from resnet_tf.errors import UserError
from resnet_tf.reports.plots import can_draw
from resnet_tf.training.logs import read_iterations
from resnet_tf.training.run_dir import describe_report
from tests.conftest import exit_code, stopping_after, write_tree

FLAGS = ("--model", "resnet8_v2", "--batch-size", "16", "--device", "cpu", "--precision", "float32")
SMALL = ("--recipe", "he2016", "--input-size", "16", "--iterations", "12", "--eval-every", "12")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))


@pytest.fixture(scope="module")
def tree(tmp_path_factory, shapes):
    """train/, val/ and test/ with 160, 40 and 40 images."""
    root = tmp_path_factory.mktemp("tree")
    train = Split(shapes.train.images[:160], shapes.train.labels[:160])
    validation = Split(shapes.train.images[160:], shapes.train.labels[160:])
    for name, part in (("train", train), ("val", validation), ("test", shapes.test)):
        write_tree(root / name, part, shapes.class_names)
    return root


def run(folder, dataset, *flags):
    return main([*FLAGS, "--dataset", dataset, "--run-dir", str(folder), *SMALL, *flags])


def weights(folder):
    return [v.numpy().tobytes() for v in keras.models.load_model(folder / "final.keras").variables]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tree):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        folder = tmp_path_factory.mktemp("runs") / "run"
        return folder, run(folder, f"folder:{tree}", "--eval-every", "5")


def without_rate(result):
    return {key: value for key, value in result.items() if key not in ("images_per_second", "data_source")}


def test_a_folder_of_files_trains_to_the_bits_of_the_same_images_in_memory(tmp_path, monkeypatch, shapes):
    write_tree(tmp_path / "tree", shapes.train, shapes.class_names)
    names = sorted(shapes.class_names)
    order = np.argsort([names.index(shapes.class_names[label]) for label in shapes.train.labels], kind="stable")
    labels = np.array([names.index(shapes.class_names[label]) for label in shapes.train.labels[order]], np.int32)
    in_memory = dataclasses.replace(shapes, class_names=tuple(names), train=Split(shapes.train.images[order], labels))
    monkeypatch.setattr("resnet_tf.data.shapes.load_shapes", lambda: in_memory)
    main([*FLAGS, "--dataset", "shapes", "--run-dir", str(tmp_path / "a"), *SMALL[-4:]])
    report = run(tmp_path / "b", f"folder:{tmp_path / 'tree'}")
    assert (report["train_images"], report["validation_images"]) == (180, 20)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert (tmp_path / "a/iterations.bin").read_bytes() == (tmp_path / "b/iterations.bin").read_bytes()


@pytest.mark.pictures
def test_own_images_train_by_finetune_in_small_batches_and_end_with_a_page(tmp_path, tree, capsys):
    folder = tmp_path / "run"
    flags = [*FLAGS, "--batch-size", "128", "--epochs", "2"]
    main([*flags, "--dataset", f"folder:{tree}", "--run-dir", str(folder), "--input-size", "16"])
    _, *printed = capsys.readouterr().out.splitlines()  # what the check of the files found is above
    assert "recipe finetune, the default for own images and given weights: max_batch_share=0.25" in printed[0]
    assert printed[1] == "batches of 40 images in place of 128: at most 25 % of the 160 images to train on"
    report = json.loads((folder / "report.json").read_text())
    assert (report["steps_per_epoch"], report["iterations"]) == (4, 8)
    assert [line.partition(",")[0] for line in (folder / "metrics.csv").read_text().split()[1:]] == ["8"]  # not 4, 8
    assert report["settings"]["recipe.batch_size"] == 128
    assert report["test"]["images"] == 40
    assert printed[-1] == f"open {folder / 'report.html'}"
    page = (folder / "report.html").read_text()
    assert f"{100 * report['test']['top1']:.2f}" in page
    assert page.count("<h2>") == 6  # per class, confusions, confusion and calibration as pictures, course, examples
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 30e6


def test_splits_class_names_and_framing(finished, tree, shapes):
    folder, report = finished
    assert [report[f"{part}_images"] for part in ("train", "validation")] == [160, 40]
    assert report["test"]["images"] == report["best"]["test"]["images"] == 40
    sidecar = json.loads((folder / "final.json").read_text())
    assert sidecar["class_names"] == sorted(shapes.class_names)
    assert sidecar["preprocessing"]["framing"] == {"resize": 16, "height": 16, "width": 16}
    expected = shapes.train.images[:160].reshape(-1, 3)
    assert sidecar["preprocessing"]["mean"] == pytest.approx(expected.mean(axis=0), rel=1e-12)
    assert sidecar["preprocessing"]["std"] == pytest.approx(expected.std(axis=0), rel=1e-12)
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["augment"], settings["input_size"], settings["dataset"]) == ("cifar", 16, f"folder:{tree}")


def test_evaluate_scores_the_test_images_as_the_report_does(finished, tmp_path, capsys):
    folder, report = finished
    result = evaluate.main([str(folder), "--report", str(tmp_path / "report"), "--batch-size", "7"])
    assert result["confusion"] == report["test"]["confusion"]
    assert result["loss"] == pytest.approx(report["test"]["loss"], rel=1e-6)
    assert "crescent" in capsys.readouterr().out
    assert (tmp_path / "report" / "examples.png").exists() == can_draw()


def test_evaluate_takes_all_of_a_folder_without_splits_that_is_named(finished, tree, shapes):
    folder, report = finished
    result = evaluate.main([str(folder), "--dataset", f"folder:{tree / 'test'}"])
    assert without_rate(result) == without_rate(report["test"])
    logits = np.asarray(keras.models.load_model(folder / "final.keras")(shapes.test.images))
    predicted = [sorted(shapes.class_names)[k] for k in logits.argmax(axis=1)]
    assert result["top1"] == np.mean(np.array(predicted) == np.array(shapes.class_names)[shapes.test.labels])


def test_predict_says_the_class_names(finished, tree, shapes):
    folder, _ = finished
    files = sorted((tree / "test").rglob("*.png"))[:8]
    result = predict.main([str(folder), *map(str, files), "--top", "1"])
    model = keras.models.load_model(folder / "final.keras")
    for file, prediction in zip(files, result["predictions"], strict=True):
        logits = np.asarray(model(cv2.imread(str(file))[None, ..., ::-1]))[0]
        assert prediction["classes"][0]["name"] == sorted(shapes.class_names)[logits.argmax()]


def test_without_test_images_the_report_says_so(tmp_path, tree, capsys):
    folder = tmp_path / "run"
    report = run(folder, f"folder:{tree / 'train'}", "--validation-size", "30")
    assert report["test"] is None
    assert report["best"]["test"] is None
    assert (report["train_images"], report["validation_images"]) == (130, 30)
    printed = capsys.readouterr().out
    last = report["training"]["last_validation_accuracy"]
    assert f"no test images; validation accuracy {100 * last:.2f} % (30 images) after 12 iterations" in printed
    assert f"validation {100 * report['best']['validation_accuracy']:.2f} %\n" in printed
    assert json.loads((folder / "report.json").read_text())["test"] is None
    assert resnet_tf(["compare", str(folder), "--output", str(tmp_path / "c.png")]) == 0
    capsys.readouterr()
    assert resnet_tf(["evaluate", str(folder)]) == 2
    assert "has no test images" in capsys.readouterr().err


def test_a_report_without_any_measurement():
    report = {"settings": {}, "test": None, "training": {"last_validation_accuracy": None}, "iterations": 3}
    assert describe_report(report, Path("nowhere")) == (
        "no test images and no validation images: nothing is known of its accuracy after 3 iterations"
    )


def test_bad_images_stop_the_run_before_anything_is_made_or_are_skipped(tmp_path, tree, capsys):
    root = tmp_path / "tree"
    shutil.copytree(tree / "train", root)
    (root / "crescent" / "empty.png").write_bytes(b"")
    (root / "crescent" / "text.jpg").write_text("hello")
    (root / "nothing").mkdir()
    argv = [*FLAGS, "--dataset", f"folder:{root}", "--run-dir", str(tmp_path / "run"), *SMALL]
    assert resnet_tf(["train", *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "3 problems among 162 images" in error
    assert "empty.png (empty)" in error
    assert not (tmp_path / "run").exists()
    report = main([*argv, "--on-bad-image", "skip"])
    printed = capsys.readouterr().out
    assert "images: 160 for train; 10 classes" in printed
    assert "left out or doubtful: 3 (" in printed
    assert (report["train_images"], report["validation_images"]) == (144, 16)
    with pytest.raises(UserError, match='on_bad_image is "skip" there, "stop" here'):
        main(argv)


def test_lists(tmp_path, tree, shapes):
    for split in ("train", "test"):
        lines = [f"{path} {path.parent.name}" for path in sorted((tree / split).rglob("*.png"))]
        (tmp_path / f"{split} it.txt").write_text("\n".join(lines))
    (tmp_path / "few.csv").write_text(f"path,label\n{next((tree / 'val').rglob('*.png'))},crescent\n")
    dataset = f"list:{tmp_path / 'train it.txt'},{tmp_path / 'few.csv'},{tmp_path / 'test it.txt'}"
    report = run(tmp_path / "run", dataset, "--augment", "none")
    assert (report["train_images"], report["validation_images"], report["test"]["images"]) == (160, 1, 40)
    assert without_rate(evaluate.main([str(tmp_path / "run")])) == without_rate(report["test"])


def test_stopped_and_resumed_it_ends_bit_for_bit_alike(tmp_path, monkeypatch, tree):
    flags = [f"folder:{tree}", "--augment", "strong"]
    run(tmp_path / "whole", *flags)
    with monkeypatch.context() as patch:
        stopping_after(patch, 7)
        assert run(tmp_path / "halves", *flags) == 128 + signal.SIGTERM
    # As runs that were started while the paper's recipe was the default: nobody names it.
    main([*FLAGS, "--dataset", *flags, "--run-dir", str(tmp_path / "halves"), *SMALL[2:]])
    assert weights(tmp_path / "halves") == weights(tmp_path / "whole")
    logs = [read_iterations(tmp_path / name / "iterations.bin") for name in ("halves", "whole")]
    np.testing.assert_array_equal(*logs)


def test_other_files_under_the_same_name_are_refused(tmp_path, tree):
    root = tmp_path / "tree"
    shutil.copytree(tree, root)
    run(tmp_path / "run", f"folder:{root}", "--iterations", "2")
    (tmp_path / "run" / "report.json").unlink()
    next((root / "val").rglob("*.png")).unlink()
    with pytest.raises(UserError, match="was started on other data"):
        run(tmp_path / "run", f"folder:{root}", "--iterations", "2")


def test_images_in_memory_are_enlarged_on_the_fly(tmp_path, small_data, shapes):
    folder = tmp_path / "run"
    flags = ["--input-size", "32", "--iterations", "3", "--validation-size", "0"]
    report = main([*FLAGS, "--dataset", "shapes", "--run-dir", str(folder), *flags])
    model = keras.models.load_model(folder / "final.keras")
    assert model.input_shape == (None, 32, 32, 3)
    large = np.stack([cv2.resize(image, (32, 32), interpolation=cv2.INTER_LINEAR) for image in shapes.test.images])
    predicted = np.asarray(model(large)).argmax(axis=1)
    assert report["test"]["top1"] == (predicted == shapes.test.labels).mean()
    assert without_rate(evaluate.main([str(folder)])) == without_rate(report["test"])


def test_what_a_request_for_own_images_asks_for():
    def settings(*flags):
        return make_config(**parse_options(flags)).settings()

    own = settings("--dataset", "folder:pets", "--model", "resnet50")
    assert (own["augment"], own["input_size"]) == ("imagenet", 224)
    own = settings("--dataset", "list:a b.txt", "--model", "resnet20_v2")
    assert (own["augment"], own["input_size"]) == ("cifar", 32)
    # Runs from before these flags were there must find the settings that they wrote down.
    assert not {"augment", "input_size", "on_bad_image"} & settings("--dataset", "cifar10").keys()
    assert settings("--augment", "none", "--input-size", "64").items() >= {"augment": "none", "input_size": 64}.items()
    named = parse_options(["--dataset", "folder:x/pets/", "--model", "resnet18"])
    assert named["run_dir"] == "runs/resnet18-pets-finetune-seed0"
    assert short_name("list:/some/where/train.txt,valid.txt") == "train"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "folder:"], "names no images"),
        (["--dataset", "folder:nowhere"], "nowhere is not a folder"),
        (["--dataset", "list:nowhere.txt"], "nowhere.txt"),
        (["--dataset", "folder:x", "--data-dir", "y"], "--data-dir does not go with --dataset folder:x"),
        (["--dataset", "files:x"], "allowed: cifar10, cifar100, shapes, folder:PATH, list:TRAIN[,[VALID][,TEST]]"),
        (["--input-size", "0"], "--input-size 0 is out of range"),
        (["--augment", "weak"], "--augment weak is not known; allowed: cifar, imagenet, strong, none, FILE"),
        (["--on-bad-image", "mend"], "argument --on-bad-image: invalid choice: 'mend'"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    code = exit_code(["train", *flags])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_list_without_its_validation_part(tmp_path, tree):
    for split in ("train", "test"):
        lines = [f"{path} {path.parent.name}" for path in sorted((tree / split).rglob("*.png"))]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    report = run(tmp_path / "run", f"list:{tmp_path / 'train.txt'},,{tmp_path / 'test.txt'}", "--iterations", "2")
    assert (report["train_images"], report["validation_images"], report["test"]["images"]) == (144, 16, 40)


def test_what_was_left_out_in_training_is_left_out_in_evaluation(tmp_path, tree, capsys):
    root = tmp_path / "tree"
    shutil.copytree(tree, root)
    (root / "train" / "a nothing").mkdir()
    for split in ("train", "test"):  # without a usable image to train on, but with some to test on
        shutil.copytree(tree / split / "ring", root / split / "b damaged")
    for index, path in enumerate((root / "train" / "b damaged").glob("*.png")):
        path.write_bytes(b"no image %d" % index)
    for index, path in enumerate((root / "test" / "b damaged").glob("*.png")):
        assert cv2.imwrite(str(path), np.full((16, 16, 3), 20 * index + 1, np.uint8))
    folder = tmp_path / "run"
    report = run(folder, f"folder:{root}", "--on-bad-image", "skip", "--iterations", "2")
    assert report["test"]["images"] == 40
    assert without_rate(evaluate.main([str(folder)])) == without_rate(report["test"])
    # Named, its images are those of a class that the model does not know; an empty folder is none of a class.
    assert resnet_tf(["evaluate", str(folder), "--dataset", f"folder:{root}"]) == 2
    assert "has b damaged, which is not among the 10 classes" in capsys.readouterr().err
    shutil.rmtree(root / "test" / "b damaged")
    assert resnet_tf(["evaluate", str(folder), "--dataset", f"folder:{root}"]) == 2
    shutil.rmtree(root / "train" / "b damaged")
    assert evaluate.main([str(folder), "--dataset", f"folder:{root}"])["loss"] == report["test"]["loss"]
    for path in (root / "train" / "ring").glob("*.png"):
        path.unlink()
    capsys.readouterr()
    assert resnet_tf(["evaluate", str(folder)]) == 2
    assert "name images of its classes with --dataset" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--schedule", "plateau"), ("--early-stopping", "1")])
def test_the_validation_images_of_a_folder_are_enough_to_go_by(tmp_path, tree, capsys, flags):
    flags = (*flags, "--validation-size", "0")
    report = run(tmp_path / "run", f"folder:{tree}", *flags, "--iterations", "3", "--eval-every", "1")
    assert report["validation_images"] == 40
    bare = ["train", *FLAGS, *SMALL, "--dataset", f"folder:{tree / 'train'}", *flags]
    assert resnet_tf([*bare, "--run-dir", str(tmp_path / "bare")]) == 2
    error = capsys.readouterr().err
    assert "needs validation images; use --validation-size above 0" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "bare").exists()


def test_a_run_that_goes_on_takes_its_statistics_from_its_settings(tmp_path, tree):
    folder = tmp_path / "run"

    def again(settings):
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "report.json").unlink()
        loss = run(folder, f"folder:{tree}", "--iterations", "2")["test"]["loss"]
        sidecar = json.loads((folder / "final.json").read_text())["preprocessing"]
        return loss, sidecar["mean"], sidecar["std"]

    report = run(folder, f"folder:{tree}", "--iterations", "2")
    settings = json.loads((folder / "settings.json").read_text())
    sidecar = json.loads((folder / "final.json").read_text())["preprocessing"]
    whole = report["test"]["loss"], sidecar["mean"], sidecar["std"]
    assert (settings["data.mean"], settings["data.std"]) == whole[1:]
    assert again(settings) == whole
    # A run of before they were written down.
    assert again({key: value for key, value in settings.items() if key not in ("data.mean", "data.std")}) == whole
    # What is written there is taken, and not computed again.
    other = {"data.mean": [1.0, 2.0, 3.0], "data.std": [4.0, 5.0, 6.0]}
    assert again(settings | other)[1:] == tuple(other.values())
