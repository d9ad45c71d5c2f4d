"""The part of `docs/commands/*.md` that says what each flag does, from the parsers behind `--help`."""

import argparse
import importlib
from pathlib import Path

from resnet_tf import list_weights
from resnet_tf.cli.main import COMMANDS
from tools.api_page import attributes_of
from tools.blocks import replace_block

FOLDER = Path("docs/commands")

_NEW = """# resnet-tf {command}

<!-- flags -->
<!-- /flags -->

## Examples

```sh
resnet-tf {command} --help
```
"""


def command_page(command: str, text: str | None) -> str:
    """The page of a command: what there is of it, with the flags as they are now.

    Args:
        command: name.
        text: the page so far, None where there is none yet.
    """
    if text is None:
        text = _NEW.format(command=command)
    if "<!-- weights -->" in text:
        text = replace_block(text, "weights", examples_of_weights(command))
    return replace_block(text, "flags", flags_of(make_parser(command)))


def examples_of_weights(command: str) -> str:
    """How `evaluate` or `predict` takes what ships."""
    known = list_weights()
    if not known:
        return "Weights that come with the package are named `NETWORK:NAME`; this version comes with none."
    rest = {"evaluate": "--data-dir DIR", "predict": "photo.jpg"}[command]
    lines = "\n".join(f"resnet-tf {command} {text} {rest}" for text in known)
    return f"Weights that come with the package:\n\n```sh\n{lines}\n```"


def make_parser(command: str) -> argparse.ArgumentParser:
    """The parser of a command."""
    module = importlib.import_module(f"resnet_tf.cli.{command.replace('-', '_')}")
    parser = module.make_parser()
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def flags_of(parser: argparse.ArgumentParser) -> str:
    """Description and flags of a parser by group, Markdown.

    Made from the parser, not from the text of its help: that changes with the terminal and the version of Python.
    """
    parts = [" ".join((parser.description or "").split())]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if actions:
            title = {"positional arguments": "Arguments", "options": "Flags"}.get(group.title or "", group.title or "")
            rows = "\n".join(f"| {_cell(_spelling(a))} | {_cell(_meaning(parser, a), code=False)} |" for a in actions)
            parts.append(f"### {title[0].upper()}{title[1:]}\n\n| | |\n|---|---|\n{rows}")
    if parser.epilog:
        parts.append(" ".join(parser.epilog.split()))
    return "\n\n".join(parts)


def _spelling(action: argparse.Action) -> str:
    value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    if not action.option_strings:
        return str(value)
    flags = ", ".join(action.option_strings)
    return flags if action.nargs == 0 else f"{flags} {value}"


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    if not action.help:
        return attributes_of("Recipe").get(action.dest, "").rstrip(".")
    return " ".join((action.help % {**vars(action), "prog": parser.prog}).split())


def _cell(text: str, code: bool = True) -> str:
    text = text.replace("|", "\\|")
    return f"`{text}`" if code else text.replace("<", "&lt;")


def commands_table() -> str:
    """All commands with their pages, for the README."""
    rows = "\n".join(f"| [`{name}`]({FOLDER.as_posix()}/{name}.md) | {about} |" for name, about in COMMANDS.items())
    return f"| | |\n|---|---|\n{rows}"
