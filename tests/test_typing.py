"""What a type checker tells the callers of the public names."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import resnet_tf
from resnet_tf.models.registry import ModelOptions
from resnet_tf.models.resnet import cifar_resnet, imagenet_resnet

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """\
import resnet_tf
model = resnet_tf.build_model("resnet20_v2", classes=4, shortcut="projection", mean=(1, 2, 3), std=(1.5, 2, 3))
view = resnet_tf.fused_view(model, "mixed_bfloat16")
print(resnet_tf.RECIPES["quick"], resnet_tf.room_for_depth(20), resnet_tf.__version__)
resnet_tf.nope
resnet_tf.fused_view(model, "bf16")
resnet_tf.build_model("resnet20_v2", clases=4)
resnet_tf.build_model("resnet20_v2", shortcut="projections")
resnet_tf.evaluate(model, "shapes", precision="bf16")
"""
CHECKERS = {
    "mypy": ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent", "--no-implicit-reexport"],
    "pyright": [],
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_wrong_name_or_value_is_a_type_error(checker, tmp_path):
    found = shutil.which(checker, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{checker} is not installed")
    (tmp_path / "program.py").write_text(PROGRAM)
    run = subprocess.run(
        [found, *CHECKERS[checker], "program.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = re.findall(r"program\.py:(\d+)(?::\d+)?:? (?:- )?error", run.stdout)
    assert sorted(set(errors)) == ["5", "6", "7", "8", "9"], run.stdout + run.stderr


def test_the_options_of_build_model_are_those_of_the_builders():
    arguments = {*cifar_resnet.__annotations__, *imagenet_resnet.__annotations__} - {"name", "return"}
    assert set(ModelOptions.__annotations__) == arguments


def test_completion_shows_the_public_names_alone():
    assert dir(resnet_tf) == sorted(resnet_tf.__all__)
    assert set(resnet_tf._HOMES) == set(resnet_tf.__all__)
