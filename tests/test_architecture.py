"""Which part may import which, read from the source, and what importing the package does."""

import ast
from pathlib import Path

import pytest

import resnet_tf

PACKAGE = Path(resnet_tf.__file__).parent
PARTS = ("models", "data", "training", "evaluation", "transfer")
# What else a leaf of the package may import of it.
LEAVES = {
    "errors": set(),
    "metrics": set(),
    "recursion": set(),
    "files": set(),
    "recipes": {"errors"},
    "opencv": {"errors"},
    "papers": set(),
    "shipped": {"errors"},
    "synchronized": set(),
    "fused": {"recursion", "synchronized"},
}


def imports(path):
    """Dotted names that a file imports, also inside functions and through importlib."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            parts = [value.value for value in ast.walk(node.args[0]) if isinstance(value, ast.Constant)]
            found.add("".join(part for part in parts if isinstance(part, str)))
    return found


def own(path):
    """First name below the package of what a file imports of it."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("resnet_tf.")}


@pytest.mark.parametrize("part", PARTS)
def test_the_parts_do_not_import_one_another(part):
    for path in (PACKAGE / part).rglob("*.py"):
        others = own(path) & (set(PARTS) - {part})
        if path == PACKAGE / "models" / "registry.py":
            others -= {"transfer"}  # weights=
        assert not others, f"{path.name} imports {others}"


def test_nobody_imports_the_commands():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "cli" and path.name != "__main__.py":
            assert "cli" not in own(path), path


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_import_next_to_nothing(leaf):
    assert own(PACKAGE / f"{leaf}.py") <= LEAVES[leaf]


def test_what_must_answer_fast_imports_no_framework():
    for name in ("errors", "files", "recipes", "recursion", "metrics", "papers", "shipped"):
        heavy = {module.split(".")[0] for module in imports(PACKAGE / f"{name}.py")} & {"tensorflow", "keras", "cv2"}
        assert not heavy, f"{name} imports {heavy}"


def test_opencv_is_imported_in_one_place():
    users = {path.name for path in PACKAGE.rglob("*.py") if {"cv2"} & {n.split(".")[0] for n in imports(path)}}
    assert users == {"opencv.py"}


def test_importing_the_package_is_silent_and_changes_nothing(python):
    result = python(
        "import os, sys, warnings\n"
        "before, limit, filters = dict(os.environ), sys.getrecursionlimit(), list(warnings.filters)\n"
        "import resnet_tf, resnet_tf.recipes\n"
        "assert not {'tensorflow', 'keras', 'cv2', 'numpy'} & sys.modules.keys()\n"
        "assert (dict(os.environ), sys.getrecursionlimit(), warnings.filters) == (before, limit, filters)\n"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_using_the_package_changes_no_environment(python):
    result = python(
        "import os, sys\n"
        "import keras\n"
        "before = dict(os.environ)\n"
        "import resnet_tf, resnet_tf.predict\n"
        "model = resnet_tf.fused_view(resnet_tf.build_model('resnet8_v2'))\n"
        "assert dict(os.environ) == before\n"
        "assert keras.config.dtype_policy().name == 'float32'\n"
    )
    assert (result.returncode, result.stdout) == (0, "")
