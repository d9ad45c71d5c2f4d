"""Write what is generated in the documents: `python -m tools.documents`; `--check` only says what is out of date."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from resnet_tf.cli.main import COMMANDS
from resnet_tf.pretrained import zoo as shipped
from resnet_tf.reports.tables import results_page, short_table
from tools.api_page import api_page
from tools.blocks import replace_block
from tools.command_pages import FOLDER, command_page, commands_table
from tools.weights import card, shipped_table

ROOT = Path(__file__).resolve().parents[1]


def documents() -> dict[Path, Callable[[str | None], str]]:
    """Generated documents, with what makes each of what it was (None where it is not there yet)."""
    pages: dict[Path, Callable[[str | None], str]] = {
        ROOT / "docs" / "api.md": lambda _: api_page(),
        ROOT / "results" / "README.md": lambda _: results_page(ROOT / "results"),
        shipped.FOLDER / "README.md": lambda _: card(),
        ROOT / "README.md": _readme,
    }
    for command in COMMANDS:
        pages[ROOT / FOLDER / f"{command}.md"] = lambda text, command=command: command_page(command, text)  # type: ignore[misc]
    return pages


def _readme(text: str | None) -> str:
    assert text is not None
    text = replace_block(text, "commands", commands_table())
    text = replace_block(text, "weights", shipped_table())
    return replace_block(text, "results", short_table(ROOT / "results"))


def main(argv: list[str]) -> int:
    """Write what has changed; 1 where `--check` found something."""
    parser = argparse.ArgumentParser(prog="python -m tools.documents", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when something is out of date")
    check = parser.parse_args(argv).check
    stale = 0
    for path, make in documents().items():
        before = path.read_text(encoding="utf-8") if path.exists() else None
        after = make(before)
        if after != before:
            stale += 1
            print(f"{path.relative_to(ROOT)} {'is out of date' if check else 'written'}")
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(after, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
