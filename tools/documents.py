"""Write the generated parts of the documents: `python -m tools.documents`; `--check` only names what is out of date."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from resnet_tf.cli.main import COMMANDS
from resnet_tf.pretrained import zoo
from tools.results import results_page, short_table
from tools.weights import card, shipped_table

ROOT = Path(__file__).resolve().parents[1]


def documents() -> dict[Path, Callable[[str], str]]:
    """Documents that are generated, or have generated blocks, with what makes each from its present text."""
    return {
        ROOT / "README.md": _readme,
        ROOT / "results" / "README.md": lambda _: results_page(ROOT / "results"),
        zoo.FOLDER / "README.md": lambda _: card(),
    }


def replace_block(text: str, name: str, content: str) -> str:
    """The text with other content between `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: it has no such block, or several.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    made, count = pattern.subn(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text)
    if count != 1:
        raise ValueError(f"there are {count} blocks <!-- {name} -->, not one")
    return made


def commands_table() -> str:
    """All commands with their pages."""
    rows = [f"| [`{name}`](docs/commands/{name}.md) | {about} |" for name, about in COMMANDS.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _readme(text: str) -> str:
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
        before = path.read_text(encoding="utf-8")
        after = make(before)
        if after != before:
            stale += 1
            print(f"{path.relative_to(ROOT)} {'is out of date' if check else 'written'}")
            if not check:
                path.write_text(after, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
