import os

import numpy as np
import pytest

from resnet_tf.data.dataset import is_image_dataset
from resnet_tf.data.image_folder import ImageFiles, natural_order, read_folder
from resnet_tf.data.image_list import find_images, read_list
from resnet_tf.errors import UserError


def plant(root, *names):
    """Empty files: nothing here opens an image."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def shown(files, root):
    """(path below root, class name) of every file."""
    names = [files.class_names[label] for label in files.labels]
    return [(os.path.relpath(path, root), name) for path, name in zip(files.paths, names, strict=True)]


def test_natural_order_takes_digits_as_numbers():
    assert natural_order(["10", "9", "img10", "img9b", "", "B", "a", "01", "1"]) == [
        *("", "01", "1", "9", "10", "B", "a", "img9b", "img10")
    ]
    assert natural_order(["2" + "0" * 5000, "9"]) == ["9", "2" + "0" * 5000]


def test_a_folder_per_class(tmp_path):
    plant(tmp_path, "dog/b.jpg", "dog/a.PNG", "cat/deep/er/c.webp", "cat/z.jpeg")
    found = read_folder(tmp_path)
    assert list(found) == ["train"]
    assert found["train"].class_names == ("cat", "dog")
    assert found["train"].labels.dtype == np.int32
    assert shown(found["train"], tmp_path) == [
        *(("cat/deep/er/c.webp", "cat"), ("cat/z.jpeg", "cat"), ("dog/a.PNG", "dog"), ("dog/b.jpg", "dog"))
    ]


def test_numbered_classes_have_their_number_as_label(tmp_path):
    plant(tmp_path, *(f"{k}/x.png" for k in range(12)))
    assert read_folder(tmp_path)["train"].labels.tolist() == list(range(12))


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_a_folder_per_split(tmp_path, name):
    plant(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", f"{name}/dog/3.jpg", "test/cat/4.jpg", "notes/x/y.jpg")
    found = read_folder(tmp_path)
    assert set(found) == {"train", "validation", "test"}
    assert shown(found["validation"], tmp_path) == [(f"{name}/dog/3.jpg", "dog")]
    assert found["validation"].labels.tolist() == [1]
    assert found["test"].class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("training_set", "validation_set", "test_set"),
        ("Training", "Validation", "Testing"),
        ("seg_train", "seg_dev", "seg_test"),
        ("Train", "Valid", "Test"),
        ("TRAIN", "VAL", "TEST"),
        ("train2017", "val2017", "test2017"),
        ("Train Images", "Validation Images", "Test Images"),
        ("trainset", "valset", "testset"),
        ("training-data", "validation-data", "evaluation"),
        ("asl_alphabet_train", "asl_alphabet_valid", "asl_alphabet_test"),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "archive/", "archive/Fruit/"])
def test_splits_as_data_sets_spell_them(tmp_path, train, validation, test, wrapper):
    names = [f"{train}/cats/1.jpg", f"{train}/dogs/2.jpg", f"{validation}/dogs/3.jpg", f"{test}/cats/4.jpg"]
    found = read_folder(plant(tmp_path, *(wrapper + name for name in names), "__MACOSX/x/._1.jpg"))
    assert {split: shown(files, tmp_path / wrapper) for split, files in found.items()} == {
        "train": [(names[0], "cats"), (names[1], "dogs")],
        "validation": [(names[2], "dogs")],
        "test": [(names[3], "cats")],
    }


def test_a_split_in_a_folder_of_its_own_name(tmp_path):
    found = read_folder(plant(tmp_path, *(f"seg_{s}/seg_{s}/{c}/1.jpg" for s in ("train", "test") for c in "ab")))
    assert {split: shown(files, tmp_path)[1:] for split, files in found.items()} == {
        "train": [("seg_train/seg_train/b/1.jpg", "b")],
        "test": [("seg_test/seg_test/b/1.jpg", "b")],
    }


def test_classes_that_are_called_like_splits(tmp_path):
    plant(tmp_path, "bullet_train/ice/1.jpg", "steam_train/old/2.jpg", "tram/3.jpg", "contest/4.jpg", "protest/5.jpg")
    assert read_folder(tmp_path)["train"].class_names == (
        *("bullet_train", "contest", "protest", "steam_train", "tram"),
    )
    plant(tmp_path / "one", "a/deep/1.jpg")
    assert shown(read_folder(tmp_path / "one", ["a", "b"])["train"], tmp_path / "one") == [("a/deep/1.jpg", "a")]


def test_a_class_may_be_called_train(tmp_path):
    plant(tmp_path, "train/1.jpg", "car/2.jpg")
    assert read_folder(tmp_path)["train"].class_names == ("car", "train")


def test_hidden_files_other_files_and_images_of_no_class_are_left_alone(tmp_path):
    plant(tmp_path, "a/._1.jpg", "a/.DS_Store", "a/.cache/2.jpg", ".git/3.jpg", "a/read me.txt", "4.jpg", "a/5.jpg")
    plant(tmp_path, "__MACOSX/a/6.jpg", "a/__MACOSX/7.jpg", "a/.ipynb_checkpoints/5.jpg", "a/@eaDir/5.jpg")
    assert shown(read_folder(tmp_path)["train"], tmp_path) == [("a/5.jpg", "a")]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    plant(tmp_path, "a/x.jpg/1.jpg", "b/2.jpg")
    assert shown(read_folder(tmp_path)["train"], tmp_path)[0] == ("a/x.jpg/1.jpg", "a")


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = plant(tmp_path / "data", "a/1.jpg", "b/2.jpg")
    plant(tmp_path / "elsewhere", "3.jpg")
    (root / "a" / "self").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "further").symlink_to(tmp_path)
    (root / "b" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "more.jpg").symlink_to(root / "a" / "1.jpg")
    (root / "c").symlink_to(root / "c")
    assert shown(read_folder(root)["train"], root) == [
        *(("a/1.jpg", "a"), ("b/2.jpg", "b"), ("b/more.jpg", "b"), ("b/more/3.jpg", "b"))
    ]


def test_files_whose_links_lead_nowhere_are_found_so_that_the_check_can_tell(tmp_path):
    plant(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "loop.jpg").symlink_to(tmp_path / "a" / "loop.jpg")
    assert len(read_folder(tmp_path)["train"]) == 3


def test_an_empty_class_is_a_class(tmp_path):
    plant(tmp_path, "a/1.jpg", "c/2.jpg")
    (tmp_path / "b").mkdir()
    found = read_folder(tmp_path)["train"]
    assert (found.class_names, found.labels.tolist()) == (("a", "b", "c"), [0, 2])


def test_classes_that_a_model_has_settled(tmp_path):
    plant(tmp_path, "a/1.jpg", "b/2.jpg")
    assert read_folder(tmp_path, ["b", "x", "a"])["train"].labels.tolist() == [0, 2]
    with pytest.raises(UserError, match=r"has b, which is not among the 1 classes \(a\)"):
        read_folder(tmp_path, ["a"])
    (tmp_path / "empty").mkdir()
    assert len(read_folder(tmp_path, ["a", "b"])["train"]) == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.jpg"], "no class folders"),
        (["a/1.txt", "b/2"], "holds no images in its class folders"),
        (["val/a/1.jpg", "test/a/2.jpg"], "holds test and val but no train/"),
        (["train/a/1.jpg", "val/a/2.jpg", "valid/a/3.jpg"], "holds both val/ and valid/"),
        (["train/a/1.jpg", "test/b/2.jpg"], r"test has b, which is not among the 1 classes \(a\)"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, names, message):
    with pytest.raises(UserError, match=message) as caught:
        read_folder(plant(tmp_path, *names))
    assert "\n" not in str(caught.value)


def test_a_class_whose_name_is_no_text(tmp_path):
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(UserError, match=r"the class folder b'caf\\xe9' in .* is not in UTF-8; rename it"):
        read_folder(tmp_path)


def test_no_folder(tmp_path):
    for path in (tmp_path / "none", plant(tmp_path, "a.jpg") / "a.jpg"):
        with pytest.raises(UserError, match="is not a folder"):
            read_folder(path)


@pytest.fixture
def lists(tmp_path):
    """Writes a list and returns its path."""

    def write(text, name="list.txt"):
        path = tmp_path / name
        path.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
        return path

    return write


def test_a_list_of_names(lists, tmp_path):
    path = lists("\ufeff# comment\n\nmy cat, sleeping.jpg   cat\r\n/abs/2.png\tdog\nsub/3.jpg ant\n")
    found = read_list(path)["train"]
    assert found.class_names == ("ant", "cat", "dog")
    assert found.labels.tolist() == [1, 2, 0]
    assert found.paths == (str(tmp_path / "my cat, sleeping.jpg"), "/abs/2.png", str(tmp_path / "sub/3.jpg"))


def test_a_list_of_integers(lists):
    found = read_list(lists("a.jpg 10\n" + "".join(f"{k}.jpg {k}\n" for k in range(10))))["train"]
    assert found.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10")
    assert found.labels.tolist() == [10, *range(10)]
    assert found.labels.dtype == np.int32


def test_integers_with_names_from_elsewhere(lists):
    found = read_list(lists("a.jpg 2\nb.jpg 02\nc.jpg 0\n"), class_names=["x", "y", "z"])["train"]
    assert (found.labels.tolist(), found.class_names) == ([2, 2, 0], ("x", "y", "z"))


def test_integers_whose_names_have_gaps(lists):
    """As a model has them that was trained without the images of class 1."""
    found = read_list(lists("a.jpg 2\nb.jpg 0\n"), class_names=("0", "2"))["train"]
    assert found.labels.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"invalid label '1'; expected one of the classes \(0, 2\)"):
        read_list(lists("a.jpg 1\n"), class_names=("0", "2"))


@pytest.mark.parametrize(
    "text",
    [
        'a b.jpg,dog\n"c, d.jpg",cat\n',
        'path,label\na b.jpg,dog\n"c, d.jpg",cat\n',
        'id,Label,width,Filename\n1,dog,7,a b.jpg\n# no\n\n2, cat,8,"c, d.jpg"\n',
    ],
)
def test_csv(lists, tmp_path, text):
    found = read_list(lists(text, "list.csv"))["train"]
    assert shown(found, tmp_path) == [("a b.jpg", "dog"), ("c, d.jpg", "cat")]


FORMS = {
    "white space": "a b.jpg cat\nc.jpg dog\n",
    "tab": "a b.jpg\tcat\nc.jpg\tdog\n",
    "semicolon": "a b.jpg;cat\nc.jpg;dog\n",
    "comma": "a b.jpg,cat\nc.jpg,dog\n",
    "label first": "cat a b.jpg\ndog c.jpg\n",
    "label first, comma": "cat,a b.jpg\ndog,c.jpg\n",
    "MXNet": "0\t3.0\tcat\ta b.jpg\n".replace("3.0\t", "") + "1\tdog\tc.jpg\n",
    "GTSRB": "Width,Height,Roi.X1,ClassId,Path\n5,6,1,cat,a b.jpg\n5,6,1,dog,c.jpg\n",
    "dog breeds": "id,breed\na b,cat\nc,dog\n",
    "APTOS": "id_code,diagnosis\na b,cat\nc,dog\n",
    "cassava": "image_id,label\na b.jpg,cat\nc.jpg,dog\n",
    "pandas": ",filename,label\n0,a b.jpg,cat\n1,c.jpg,dog\n",
    "pandas, tab": "\tfilename\tlabel\n0\ta b.jpg\tcat\n1\tc.jpg\tdog\n",
    "semicolons with a header": "name;class\na b.jpg;cat\nc.jpg;dog\n",
    "label first with a header": "label\timage\ncat\ta b.jpg\ndog\tc.jpg\n",
    "one-hot": "image,cat,dog\na b,1.0,0.0\nc,0.0,1.0\n",
    "backslashes": "sub\\a b.jpg cat\nsub\\c.jpg dog\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_the_forms_that_lists_come_in(lists, tmp_path, form, encoding):
    plant(tmp_path, "sub/a b.jpg", "sub/c.jpg")
    text = FORMS[form]
    if form in ("white space", "label first"):
        plant(tmp_path, "a b.jpg", "c.jpg")
    folder = "" if form in ("white space", "label first") else "sub/"
    for name in ("list.txt", "list.csv") if "," in text or ";" in text else ("list.txt", "list.lst"):
        found = read_list(lists(text.encode(encoding), name))["train"]
        assert shown(found, tmp_path) == [(f"{folder}a b.jpg", "cat"), (f"{folder}c.jpg", "dog")]


def test_latin_1(lists, tmp_path):
    assert shown(read_list(lists("é.jpg café\n".encode("latin-1")))["train"], tmp_path) == [("é.jpg", "café")]


def test_whole_numbers_with_a_point(lists):
    found = read_list(lists("0\t1.000000\ta.jpg\n1\t0.000000\tb.jpg\n", "train.lst"))["train"]
    assert (found.labels.tolist(), found.class_names) == ([1, 0], ("0", "1"))
    assert read_list(lists("a.jpg 1.0\nb.jpg 1.5\n"))["train"].class_names == ("1.0", "1.5")


def test_labels_from_1(lists):
    train, test = lists("a.jpg 2\nb.jpg 1\nc.jpg 3\n"), lists("d.jpg 3\n", "test.txt")
    found = read_list(train, None, test)
    assert found["train"].class_names == ("1", "2", "3")
    assert (found["train"].labels.tolist(), found["test"].labels.tolist()) == ([1, 0, 2], [2])
    assert read_list(train, class_names=["x", "y", "z"])["train"].labels.tolist() == [1, 0, 2]
    assert read_list(test, class_names=("1", "2", "3"))["train"].labels.tolist() == [2]


def test_identifiers_are_looked_for_where_the_list_lies(lists, tmp_path):
    plant(tmp_path, "train_images/x1.png", "test_images/x1.png", "deep/er/x2.jpg", "train_images/.x3.png", "x4/x5.jpg")
    found = read_list(lists("id,label\nx1,a\nx2,b\nx3,a\n", "train.csv"))["train"]
    assert [path for path, _ in shown(found, tmp_path)] == ["train_images/x1.png", "deep/er/x2.jpg", "x3"]
    with pytest.raises(UserError, match=r"labels.csv:2 may mean .*test_images/x1.png, .*train_images/x1.png; "):
        read_list(lists("id,label\nx1,a\n", "labels.csv"))
    assert shown(read_list(lists("id,label\nx4/x5,a\n", "labels.csv"))["train"], tmp_path) == [("x4/x5.jpg", "a")]


def test_a_header_makes_any_list_csv(lists, tmp_path):
    assert shown(read_list(lists("image,class\na b.jpg,new york\n"))["train"], tmp_path) == [("a b.jpg", "new york")]


def test_lists_of_all_splits_number_classes_alike(lists):
    found = read_list(lists("1.jpg b\n2.jpg a\n3.jpg c\n", "t"), lists("4.jpg c\n", "v"), lists("5.jpg b\n", "e"))
    assert {split: files.labels.tolist() for split, files in found.items()} == {
        "train": [1, 0, 2],
        "validation": [2],
        "test": [1],
    }


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ("", None, "names no image"),
        ("# only a comment\n", None, "names no image"),
        ("a.jpg 0\nb.jpg\n", None, r"list.txt:2 has 'b.jpg' and no more"),
        ("a.jpg 2\nb.jpg 3\n", None, r"2 integer labels from 2 to 3"),
        ("a.jpg 0\nb.jpg 2\n", None, r"number them 0 to 1 without gaps"),
        ("a.jpg -1\nb.jpg 0\n", None, r"integer labels from -1 to 0"),
        ("a.jpg 0\nb.jpg 1\nc.jpg cat\n", None, r"list.txt:1 has the integer label 0, .*list.txt:3 the name 'cat'"),
        ("a.jpg 0\nb.jpg 1\n", "c.jpg cat\n", "label all images one way or the other"),
        ("a.jpg 0\nb.jpg 1\n", "c.jpg 2\n", r"valid.txt:1: invalid label '2'; expected one of the classes \(0 to 1\)"),
        ("a.jpg ant\nb.jpg cat\n", "c.jpg cow\n", r"'cow'; expected one of the classes \(ant, cat\)"),
        ("path,label\na.jpg,\n", None, "list.txt:2 lacks a path or a label"),
        ("path,label\na.jpg\n", None, "list.txt:2 has 'a.jpg' and no more; .* image_id, .*, classid"),
        ("a.jpg " + "9" * 5000 + "\nb.jpg 0\n", None, "one way or the other"),
        (b"\xff\xfe\x00", None, "is not text"),
        (
            "picture;kind\na.jpg;cat\n",
            None,
            "'picture;kind', which is no known header; .* tab, comma .* breed",
        ),
        ("image,cat,dog\na.jpg,1,1\n", None, "list.txt:2 does not have a 1 in one column and 0 in the others"),
        ("image,cat,dog\na.jpg,0.5,1\n", None, "list.txt:2 does not have a 1 in one column and 0 in the others"),
    ],
)
def test_lists_that_cannot_be_used(lists, train, validation, message):
    with pytest.raises(UserError, match=message) as caught:
        read_list(lists(train), None if validation is None else lists(validation, "valid.txt"))
    assert "\n" not in str(caught.value)


def test_a_list_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_list(path)


def test_what_the_commands_call_them(tmp_path, lists):
    plant(tmp_path / "data", "a/1.jpg")
    train, valid = lists("a.jpg x\n", "t.txt"), lists("b.jpg x\n", "v.txt")
    assert set(find_images(f"folder:{tmp_path / 'data'}")) == {"train"}
    assert set(find_images(f"list:{train},{valid}")) == {"train", "validation"}
    assert set(find_images(f"list:{train},{valid},{train}")) == {"train", "validation", "test"}
    assert {split: files.paths for split, files in find_images(f"list:{train},,{valid}").items()} == {
        "train": (str(tmp_path / "a.jpg"),),
        "test": (str(tmp_path / "b.jpg"),),
    }
    assert [is_image_dataset(name) for name in ("folder:x", "list:y", "cifar10", "folders")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("name", ["folder:", "list: ", "cifar10", "list:a,b,c,d", "list:,b", "list:a,", "list:a,b,"])
def test_names_of_no_images(name):
    with pytest.raises(UserError, match=r"folder:PATH|list:TRAIN"):
        find_images(name)


def test_taking_some():
    found = ImageFiles(("0", "1", "2"), np.arange(3, dtype=np.int32), ("a", "b", "c"))
    part = found.take(np.array([2, 0]))
    assert (part.paths, part.labels.tolist(), part.class_names) == (("2", "0"), [2, 0], ("a", "b", "c"))
    assert len(found.take([])) == 0
