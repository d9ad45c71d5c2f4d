"""Hooks of mkdocs: pages that live outside `docs/`, the notebook as a page, and links that also work on GitHub."""

import json
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Files of the repository that are pages of the site, beside those in docs/.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "results/README.md": "results.md",
    "resnet_tf/weights/README.md": "weights.md",
    "docs/first_steps.ipynb": "first_steps.md",
}
_LINK = re.compile(r"(!?)\[([^\[\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        content = notebook_page(text) if source.endswith(".ipynb") else text
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links of a page to pages of the site."""
    return site_links(markdown, page.file.src_uri)


def site_links(text: str, page: str) -> str:
    """The text of a page with links as the site has them; of links to other files of the repository, the words."""
    sources = {target: source for source, target in PAGES.items()}
    folder = dirname(sources.get(page, f"docs/{page}"))

    def link(match: re.Match[str]) -> str:
        image, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        source = normpath(join(folder, target))
        if source not in PAGES and not (source.startswith("docs/") and (ROOT / source).is_file()):
            return words
        place = relpath(PAGES.get(source, source.removeprefix("docs/")), dirname(page) or ".")
        return f"{image}[{words}]({place}{anchor})"

    return _LINK.sub(link, text)


def notebook_page(text: str) -> str:
    """The cells of a notebook as Markdown."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells)
