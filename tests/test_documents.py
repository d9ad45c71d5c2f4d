"""What the documents show is run, what they point to exists, and what is generated in them is up to date."""

import configparser
import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from resnet_tf.cli.request import parse_request

from resnet_tf import cifar_resnet, recipes
from resnet_tf.cli import reproduce
from resnet_tf.cli.main import COMMANDS
from resnet_tf.cli.main import main as resnet_tf
from resnet_tf.data.image_io import cv2
from resnet_tf.models import registry
from resnet_tf.pretrained import zoo as shipped
from tools.api_page import as_markdown
from tools.blocks import replace_block
from tools.command_pages import make_parser
from tools.documents import documents

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("results/**/*.md"), shipped.FOLDER / "README.md"}
)


def blocks(language):
    """Fenced code blocks of all documents, as parameters."""
    return [
        pytest.param(path, code, id=f"{path.relative_to(ROOT)}-{number}")
        for path in DOCUMENTS
        for number, code in enumerate(
            re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
        )
    ]


@pytest.fixture
def as_before(monkeypatch):
    """Takes back what a document adds to the registries."""
    monkeypatch.setattr(registry, "CIFAR_NETWORKS", dict(registry.CIFAR_NETWORKS))
    monkeypatch.setattr(recipes, "RECIPES", dict(recipes.RECIPES))


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize(("path", "code"), blocks("python"))
def test_python_code_runs(path, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cifar_resnet(8).save("final.keras")
    exec(compile(code, str(path), "exec"), {"images": np.zeros((2, 32, 32, 3), np.uint8), "__name__": "document"})
    keras.backend.clear_session()


def test_every_fenced_block_is_of_a_known_kind():
    for path in DOCUMENTS:
        kinds = re.findall(r"^```(\w*)\n.*?^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        # `text` is for signatures; of a `yaml` file the commands in it are looked at.
        assert set(kinds) <= {"python", "sh", "text", "yaml"}, path


# Commands of a shell that the documents may show without their being tried.
SHELL = {"cp", "git", "bash", "ruff", "mypy", "apt-get", ".", "source"}
# Read-only commands and quick ones: these run. All others are taken apart as far as their command does before it works.
RUN = {"evaluate", "predict", "compare", "summary", "export"}


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
            yield pytest.param("".join(code), id=f"{path.relative_to(ROOT)}: {''.join(code)[:40]}")


@pytest.fixture
def workplace(tmp_path, monkeypatch, finished_run, small_data, shapes):
    """A folder with what the documents' commands name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "load_dataset", lambda name, data_dir: shapes)
    shutil.copytree(finished_run[0], "runs/resnet20_v2-shapes-quick-seed0")
    model = keras.models.load_model(finished_run[0] / "final.keras")
    for name in ("some_model.keras", "resnet50.keras"):
        model.save(name)
    Path("folder").mkdir()
    for name in ("photo.png", "photo.jpg", "folder/other.png"):
        cv2.imwrite(name, shapes.test.images[0])
    return tmp_path


@pytest.mark.parametrize(("path", "code"), [*blocks("sh"), *blocks("yaml")])
def test_shell_commands_work(path, code, workplace, monkeypatch):
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
    arguments = make_parser(command).parse_args(shown or flags)
    behind = flags[flags.index("--") + 1 :] if "--" in flags else []
    if command == "launch":
        check(behind[0], behind[1:], run=False)
    if command == "train":
        parse_request(arguments)
    if command == "reproduce" and run and not (arguments.markdown or arguments.collect):
        places = ["--plan", "--results", "nowhere", "--dataset", "shapes"]
        before = flags[: len(flags) - len(behind)]
        chosen = [flag for flag in before if flag not in ("--data-dir", "DIR", "--plan", "--")]
        assert resnet_tf([command, *chosen, *places, "--", *behind]) == 0
    elif run and command in RUN and needs_nothing_more(command, arguments):
        assert resnet_tf([command, *shown]) == 0


def needs_nothing_more(command, arguments):
    """Whether a command can be tried with what every installation has, offline and in a second or two."""
    if command == "export":
        return arguments.format == "keras"
    if command == "predict":
        return arguments.model not in registry.IMAGENET_NETWORKS
    if command == "evaluate":
        return ":" not in arguments.model and not arguments.report
    return not getattr(arguments, "plot", None)


def test_the_quick_start_trains(workplace):
    (line,) = re.findall(r"^pip install \. && python train\.py (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    small = ["--model", "resnet8_v2", "--batch-size", "16", "--epochs", "0.2", "--device", "cpu", "--run-dir", "quick"]
    assert resnet_tf(["train", *line.split(), *small]) == 0
    assert (workplace / "quick" / "final.keras").exists()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", list(documents()), ids=lambda path: str(path.relative_to(ROOT)))
def test_generated_documents_are_up_to_date(path):
    text = path.read_text(encoding="utf-8")
    assert documents()[path](text) == text, f"{path} is out of date: python -m tools.documents"


def test_every_command_has_its_page():
    pages = {path.stem for path in (ROOT / "docs" / "commands").glob("*.md")}
    assert pages == set(COMMANDS)


def test_a_docstring_in_markdown():
    text = """Do it.

    Args:
        one: first,
            and more.
        **more: others.

    Returns:
        Something.
    """
    expected = "Do it.\n\n**Args**\n\n- `one`: first,\n  and more.\n- `**more`: others.\n\n**Returns**\n\nSomething."
    assert as_markdown(text) == expected


def test_only_the_block_is_replaced():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert replace_block(text, "x", "new \\1") == "a\n<!-- x -->\n\nnew \\1\n\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="0 blocks"):
        replace_block(text, "y", "new")
