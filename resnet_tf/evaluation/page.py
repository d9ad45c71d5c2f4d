"""One HTML page that needs no network and no other file."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#111;background:#fff;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #bbb}
table{border-collapse:collapse}th,td{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}img{max-width:100%;height:auto}
.numbers{display:flex;flex-wrap:wrap;gap:.6rem 2.4rem;padding:0}.numbers li{list-style:none}
.numbers b{display:block;font-size:1.4rem}.scroll{overflow-x:auto}
""".strip()


class Page:
    """A page that grows from top to bottom."""

    def __init__(self, title: str) -> None:
        """Start with a heading."""
        self._title = title
        self._body = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """Start a section."""
        self._body.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Add a line of text."""
        self._body.append(f"<p>{escape(text)}</p>")

    def numbers(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Add figures, each with its name below."""
        items = "".join(f"<li><b>{escape(value)}</b>{escape(name)}</li>" for name, value in pairs)
        self._body.append(f'<ul class="numbers">{items}</ul>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; the first column is text, the others are numbers."""
        top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        self._body.append(
            f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'
        )

    def picture(self, path: Path, about: str) -> None:
        """Put a PNG file into the page itself; `about` is read out where it cannot be seen.

        Raises:
            OSError: the file cannot be read.
        """
        data = base64.b64encode(path.read_bytes()).decode()
        self._body.append(f'<p><img alt="{escape(about)}" src="data:image/png;base64,{data}"></p>')

    def text(self) -> str:
        """The whole page as HTML."""
        head = (
            f'<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{escape(self._title)}</title><style>{_STYLE}</style>"
        )
        body = "\n".join(self._body)
        return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
