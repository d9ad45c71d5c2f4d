"""Which layer may import which, read from the source, and what importing the package does."""

import ast
import graphlib
from pathlib import Path

import pytest

import resnet_tf

PACKAGE = Path(resnet_tf.__file__).parent
# From the bottom to the top; a file imports from layers below its own, and from its own without cycles.
LAYERS = (
    {"errors", "files", "pickles", "process", "recipes"},
    {"models", "data", "pretrained", "reports", "folding", "fused", "summary", "inference", "config", "saving"}
    | {"runtime"},
    {"training"},
    {"results", "fitting", "scoring", "prediction", "export", "tuning"},
    {"cli", "__main__"},
)
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
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
    """Modules of the package that a file imports, or names from."""
    names = [name.removeprefix("resnet_tf.") for name in imports(path) if name.startswith("resnet_tf.")]
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} & MODULES.keys()


def layer_of(module):
    return next(number for number, members in enumerate(LAYERS) if module.split(".")[0] in members)


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_nothing_from_layers_above_its_own(module):
    above = {other for other in own(MODULES[module]) if layer_of(other) > layer_of(module)}
    assert not above, f"{module} imports {above}"


def test_no_imports_go_in_a_circle():
    graphlib.TopologicalSorter({module: own(path) for module, path in MODULES.items()}).prepare()


def test_what_must_answer_fast_imports_no_framework():
    for name in (*LAYERS[0] - {"process"}, "config", "reports.metrics", "pretrained.zoo"):
        heavy = {module.split(".")[0] for module in imports(MODULES[name])} & {"tensorflow", "keras", "cv2"}
        assert not heavy, f"{name} imports {heavy}"


def test_opencv_is_imported_in_one_place():
    users = {name for name, path in MODULES.items() if {"cv2"} & {n.split(".")[0] for n in imports(path)}}
    assert users == {"data.image_io"}


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
        "import resnet_tf, resnet_tf.fitting, resnet_tf.prediction\n"
        "assert 'tensorboard' not in sys.modules\n"
        "model = resnet_tf.fused_view(resnet_tf.build_model('resnet8_v2'))\n"
        "assert dict(os.environ) == before\n"
        "assert keras.config.dtype_policy().name == 'float32'\n"
    )
    assert (result.returncode, result.stdout) == (0, "")
