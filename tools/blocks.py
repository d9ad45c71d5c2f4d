"""Parts of a written document that are generated: between `<!-- name -->` and `<!-- /name -->`."""

import re


def replace_block(text: str, name: str, content: str) -> str:
    """The text with another content of a block.

    Raises:
        ValueError: it has no such block, or several.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    made, count = pattern.subn(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text)
    if count != 1:
        raise ValueError(f"there are {count} blocks <!-- {name} -->, not one")
    return made
