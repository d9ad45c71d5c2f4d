"""What the documents show is run, what they point to exists, and what is generated in them is up to date."""

import configparser
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

import resnet_tf
from resnet_tf import tuning
from resnet_tf.cli.main import COMMANDS, main
from resnet_tf.cli.train import parse_options
from resnet_tf.config import make_config
from resnet_tf.data.image_io import cv2
from resnet_tf.models.registry import CIFAR_NETWORKS, IMAGENET_NETWORKS
from resnet_tf.pretrained import zoo
from tools.documents import documents, replace_block
from tools.site import PAGES, notebook_page, site_links

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("results/**/*.md"), zoo.FOLDER / "README.md"}
)
NOTEBOOK = ROOT / "docs" / "first_steps.ipynb"


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks_of(path, language):
    """Line number and code of each fenced block of a document."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: match.start(1)].count("\n"), match[1]) for match in found]


def blocks(language):
    """Fenced code blocks of all documents, as parameters."""
    return [
        pytest.param(code, id=f"{name_of(path)}:{line + 1}")
        for path in DOCUMENTS
        for line, code in blocks_of(path, language)
    ]


def fake_tune(*arguments, **options):
    """Check the arguments of a search instead of running it."""
    given = inspect.signature(tuning.tune).bind(*arguments, **options)
    make_config(model=given.arguments["model"], dataset=given.arguments["data"], **given.arguments.get("options", {}))
    return tuning.TuningResult({"learning_rate": 0.1}, 3, 0.9, 20, 5)


@pytest.fixture(scope="module")
def final(tmp_path_factory):
    """The file of a model."""
    file = tmp_path_factory.mktemp("model") / "final.keras"
    resnet_tf.cifar_resnet(8).save(file)
    return file


@pytest.fixture
def in_small(monkeypatch, tmp_path, small_data, final):
    """Makes what a document does small and quick, and takes back what it adds to the registries."""
    before = [(registry, dict(registry)) for registry in (CIFAR_NETWORKS, resnet_tf.RECIPES)]
    monkeypatch.chdir(tmp_path)
    shutil.copy(final, tmp_path)
    yield
    for registry, names in before:
        registry.clear()
        registry.update(names)
    keras.backend.clear_session()


def run_in_small(sources, name):
    """Execute code cells or blocks one after the other, with a smaller network and one step of an epoch."""
    namespace = {"images": np.zeros((2, 32, 32, 3), np.uint8), "__name__": "document", "fake_tune": fake_tune}
    for line, code in sources:
        optional = re.findall(r"^(?:import|from) (onnxruntime|ai_edge_litert)", code, re.MULTILINE)
        if any(importlib.util.find_spec(module) is None for module in optional):
            continue
        code = code.replace("resnet_tf.tune(", "fake_tune(")
        code = re.sub(r'train\("resnet\d+_v', 'train("resnet8_v', re.sub(r"epochs=\d+", "epochs=1", code))
        exec(compile("\n" * line + code, name, "exec"), namespace)


@pytest.mark.pictures
@pytest.mark.usefixtures("in_small")
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks_of(path, "python")], ids=name_of)
def test_the_python_code_of_a_document_runs_in_order(path):
    run_in_small(blocks_of(path, "python"), str(path))


@pytest.mark.pictures
@pytest.mark.usefixtures("in_small")
def test_the_notebook_runs_in_order():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    run_in_small([(0, "".join(cell["source"])) for cell in cells], str(NOTEBOOK))


def test_every_fenced_block_is_of_a_known_kind():
    for path in DOCUMENTS:
        kinds = re.findall(r"^```(\w*)\n.*?^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        # `text` is for excerpts; of a `yaml` file the commands in it are looked at.
        assert set(kinds) <= {"python", "sh", "text", "yaml"}, path


# Commands of a shell that the documents may show without their being tried.
SHELL = {"cp", "curl", "docker", "git", "mkdir", "saved_model_cli", "bash", "ruff", "mypy", "apt-get", ".", "source"}
# Read-only commands and quick ones: these run. All others are taken apart as far as their command does before it works.
RUN = {"preview", "evaluate", "predict", "compare", "summary", "export"}


def commands_in(code):
    """The commands of a block: comments and gaps left out, chains taken apart; of a script only ours."""
    if code.startswith(("#!", "apiVersion")):
        code = "\n".join(re.findall(r"resnet-tf [^\n']*", code))
    for line in code.splitlines():
        words = [word for word in shlex.split(line, comments=True) if word != "…"]
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if not words:
            continue
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        yield words


def inline_commands():
    """Commands in running text, in lists and in blocks that are indented."""
    for path in DOCUMENTS:
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        starts = r"(?:resnet-tf|python train\.py|python evaluate\.py|python -m|pip install) "
        for code in re.findall(rf"`({starts}[^`]+)`|^ {{4,}}({starts}.*)$", text, re.MULTILINE):
            yield pytest.param("".join(code), id=f"{name_of(path)}: {''.join(code)[:40]}")


@pytest.fixture(scope="module")
def named_files(tmp_path_factory, finished_run, shapes):
    """A folder with what the documents' commands name."""
    folder = tmp_path_factory.mktemp("named")
    shutil.copytree(finished_run[0], folder / "runs" / "resnet20_v2-shapes-quick-seed0")
    keras.models.load_model(finished_run[0] / "final.keras").save(folder / "some_model.keras")
    shutil.copy(folder / "some_model.keras", folder / "resnet50.keras")
    (folder / "folder").mkdir()
    for name in ("photo.png", "photo.jpg", "folder/other.png"):
        cv2.imwrite(str(folder / name), shapes.test.images[0])
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch, named_files, small_data):
    """A copy of that folder to work in."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(named_files, tmp_path, dirs_exist_ok=True)


@pytest.mark.pictures
@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("code", [*blocks("sh"), *blocks("yaml")])
def test_shell_commands_work(code):
    for words in commands_in(code):
        check_command(words, run=True)


@pytest.mark.parametrize("code", list(inline_commands()))
def test_commands_in_the_text_are_understood(code):
    for words in commands_in(code):
        check_command(words, run=False)


def check_command(words, run):
    """Fail where a command is not understood; `run` says whether quick ones are to be run."""
    program, *rest = words
    if words[:2] in (["python", "train.py"], ["python", "evaluate.py"]):
        assert (ROOT / words[1]).exists()
        program, rest = "resnet-tf", [words[1].removesuffix(".py"), *words[2:]]
    if program == "resnet-tf":
        check(rest[0], rest[1:], run)
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), words
    elif program == "pip":
        configuration = configparser.ConfigParser()
        configuration.read(ROOT / "setup.cfg")
        extras = re.findall(r"\[(.*)\]", " ".join(words))
        assert {part for extra in extras for part in extra.split(",")} <= set(configuration["options.extras_require"])
    else:
        assert program in SHELL, words


def check(command, flags, run):
    assert command in COMMANDS, command
    if not flags or flags[0] == "--help":
        return
    shown = [
        part for flag in flags for part in ([str(p) for p in sorted(Path().glob(flag))] if "*" in flag else [flag])
    ]
    if command == "train":
        parse_options(shown or flags)
        return
    module = importlib.import_module(f"resnet_tf.cli.{command.replace('-', '_')}")
    arguments = module.make_parser().parse_args(shown or flags)
    behind = flags[flags.index("--") + 1 :] if "--" in flags else []
    if command == "launch":
        check(behind[0], behind[1:], run=False)
    if command == "reproduce" and run:
        places = ["--plan", "--results", "nowhere", "--dataset", "shapes"]
        before = flags[: len(flags) - len(behind)]
        chosen = [flag for flag in before if flag not in ("--data-dir", "DIR", "--plan", "--")]
        assert main([command, *chosen, *places, "--", *behind]) == 0
    elif run and command in RUN and needs_nothing_more(command, arguments):
        assert main([command, *shown]) == 0


def needs_nothing_more(command, arguments):
    """Whether a command can be tried with what every installation has, offline and in a second or two."""
    if command == "export":
        return arguments.format == "keras"
    if command == "predict":
        return arguments.model not in IMAGENET_NETWORKS
    if command == "evaluate":
        return ":" not in arguments.model and not arguments.report and arguments.dataset in (None, "shapes")
    if command == "preview":
        return arguments.data == "shapes"
    return not getattr(arguments, "plot", None)


def test_the_quick_start_trains(workplace):
    (line,) = re.findall(r"^resnet-tf train (--dataset shapes .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    small = ["--model", "resnet8_v2", "--batch-size", "16", "--epochs", "0.2", "--device", "cpu", "--run-dir", "quick"]
    assert main(["train", *shlex.split(line, comments=True), *small]) == 0
    assert (workplace / "quick" / "final.keras").exists()
    assert (workplace / "quick" / "report.html").exists()


def test_all_has_what_users_can_ask_for():
    configuration = configparser.ConfigParser()
    configuration.read(ROOT / "setup.cfg")
    extras = {name: set(packages.split()) for name, packages in configuration["options.extras_require"].items()}
    for_developers = {"all", "test", "dev", "docs"}
    assert extras["all"] == set().union(*(extras[name] for name in extras.keys() - for_developers))


def anchors_of(path):
    """The anchors of a document's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*DOCUMENTS, NOTEBOOK], ids=name_of)
def test_links_lead_somewhere(path):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", path.read_text(encoding="utf-8")):
        place = path.parent / target if target else path
        assert place.exists(), target
        assert not anchor or anchor in anchors_of(place), (target, anchor)


def test_files_that_the_architecture_names_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:resnet_tf/)?([\w/]+(?:\.py|/))`", text)
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "resnet_tf" / name).exists(), name
    (table,) = re.findall(r"## One run, in six files\n(.*?)\n\n[A-Z]", text, re.DOTALL)
    assert len(re.findall(r"^\| `[\w/]+\.py` \|", table, re.MULTILINE)) == 6


@pytest.mark.parametrize("path", list(documents()), ids=name_of)
def test_generated_documents_are_up_to_date(path):
    text = path.read_text(encoding="utf-8")
    assert documents()[path](text) == text, f"{path} is out of date: python -m tools.documents"


def test_every_command_has_its_page():
    pages = {path.stem for path in (ROOT / "docs" / "commands").glob("*.md")}
    assert pages == set(COMMANDS)


def test_every_public_name_is_on_the_page_of_the_api():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted([*re.findall(r"^::: resnet_tf\.(\w+)$", text, re.MULTILINE), "RECIPES"]) == sorted(resnet_tf.__all__)


def test_only_the_block_is_replaced():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert replace_block(text, "x", "new \\1") == "a\n<!-- x -->\n\nnew \\1\n\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="0 blocks"):
        replace_block(text, "y", "new")


def test_links_of_the_site():
    text = (
        "![x](docs/curves.png) [a](docs/python.md#tune) [b](results/README.md) [c](LICENSE) [d](#e) [f](https://g.h/i)"
    )
    expected = "![x](curves.png) [a](python.md#tune) [b](results.md) c [d](#e) [f](https://g.h/i)"
    assert site_links(text, "index.md") == expected
    assert (
        site_links("[a](../../README.md#more) [b](../api.md)", "commands/train.md")
        == "[a](../index.md#more) [b](../api.md)"
    )
    assert all((ROOT / source).is_file() for source in PAGES)


def test_a_notebook_as_a_page():
    cells = [{"cell_type": "markdown", "source": ["# A\n", "b"]}, {"cell_type": "code", "source": ["c()"]}]
    assert notebook_page(json.dumps({"cells": cells})) == "# A\nb\n\n```python\nc()\n```"
