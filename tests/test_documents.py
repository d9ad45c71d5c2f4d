"""What the documents show is run, and what they point to exists."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

from resnet_tf import cifar_resnet
from resnet_tf.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
CODE = [
    pytest.param(path, code, id=f"{path.name}-{number}")
    for path in DOCUMENTS
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize(("path", "code"), CODE)
def test_python_code_runs(path, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cifar_resnet(8).save("final.keras")
    exec(compile(code, str(path), "exec"), {"images": np.zeros((2, 32, 32, 3), np.uint8)})
    keras.backend.clear_session()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_the_shell_commands_of_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    used = set(re.findall(r"^resnet-tf ([a-z-]+)", text, re.MULTILINE))
    assert used <= set(COMMANDS)
    assert set(COMMANDS) <= used | {"tune"}
