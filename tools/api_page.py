"""`docs/api.md` from the docstrings of the public names, read from the source: no framework is imported."""

import ast
import inspect
import re
from pathlib import Path

import resnet_tf
from resnet_tf.recipes import RECIPES

PACKAGE = Path(resnet_tf.__file__).parent

_START = """# Python interface

Written by `python -m tools.documents` from the docstrings. All names are imported from `resnet_tf`, on first use:
`import resnet_tf` loads no framework."""

_GROUPS = {
    "Networks by name": ("build_model", "list_models", "list_weights"),
    "Builders": ("cifar_resnet", "imagenet_resnet", "residual_block", "bottleneck_block", "feature_extractor"),
    "Running a model": ("fused_view", "recursion_limit"),
    "Recipes and runs": ("RECIPES", "Recipe", "read_iterations"),
    "Errors": ("UserError",),
}
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$")
_ITEM = re.compile(r"^ {4}([\w*, ]+): (.*)$")


def api_page() -> str:
    """The whole page, Markdown."""
    placed = {name for names in _GROUPS.values() for name in names}
    others = tuple(name for name in resnet_tf.__all__ if name not in placed)
    parts = [_START]
    for title, names in {**_GROUPS, **({"More": others} if others else {})}.items():
        parts += [f"## {title}", *(_describe(name) for name in names)]
    return "\n\n".join(parts) + "\n"


def _describe(name: str) -> str:
    if name == "RECIPES":
        recipes = "\n".join(f"- `{recipe.name}`: {recipe.about}" for recipe in RECIPES.values())
        return f"### RECIPES\n\nThe named recipes, a mapping from their names to `Recipe`:\n\n{recipes}"
    node = definition(name)
    docstring = ast.get_docstring(node)
    assert docstring is not None, name
    return f"### {name}\n\n```text\n{_signature(node)}\n```\n\n{as_markdown(docstring)}"


def definition(name: str) -> ast.FunctionDef | ast.ClassDef:
    """The function or class that a public name stands for, as it is written."""
    path = PACKAGE / f"{resnet_tf._HOMES[name].replace('.', '/')}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return node
    raise ValueError(f"{path} does not define {name}")


def _signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    decorators = "".join(f"@{ast.unparse(part)}\n" for part in node.decorator_list)
    if isinstance(node, ast.ClassDef):
        fields = [f"    {ast.unparse(part)}" for part in node.body if isinstance(part, ast.AnnAssign)]
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return "\n".join([f"{decorators}class {node.name}{f'({bases})' if bases else ''}", *fields])
    returns = f" -> {ast.unparse(node.returns).strip(chr(39))}" if node.returns else ""
    arguments = _arguments(node.args)
    line = f"{decorators}{node.name}({', '.join(arguments)}){returns}"
    if len(line) <= 100:
        return line
    return f"{decorators}{node.name}(\n" + "".join(f"    {part},\n" for part in arguments) + f"){returns}"


def _arguments(arguments: ast.arguments) -> list[str]:
    """Each argument as it is written, with the bare star and the slash where they stand."""
    parts = []
    given = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(given) - len(arguments.defaults)) + list(arguments.defaults)
    parts += [_argument(one, default) for one, default in zip(given, defaults, strict=True)]
    if arguments.vararg:
        parts.append(f"*{ast.unparse(arguments.vararg)}")
    elif arguments.kwonlyargs:
        parts.append("*")
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parts += [_argument(one, default) for one, default in named]
    if arguments.kwarg:
        parts.append(f"**{ast.unparse(arguments.kwarg)}")
    return parts


def _argument(one: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(one) if default is None else f"{ast.unparse(one)} = {ast.unparse(default)}"


def as_markdown(docstring: str) -> str:
    """A docstring with its sections as lists."""
    lines, section = [], None
    for line in inspect.cleandoc(docstring).splitlines():
        heading, item = _SECTION.match(line), _ITEM.match(line)
        if heading:
            section = heading[1]
            lines += [f"**{section}**", ""]
        elif section in ("Args", "Attributes", "Raises") and item:
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.strip():
            lines.append(f"  {line.strip()}" if lines[-1].startswith(("- ", "  ")) else line.strip())
        else:
            lines.append(line)
    return "\n".join(lines).strip()


def attributes_of(name: str) -> dict[str, str]:
    """What the docstring of a class says of each attribute, in one line."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(ast.get_docstring(definition(name)) or "").splitlines():
        item = _ITEM.match(line)
        if item:
            names = [part.strip() for part in item[1].split(",")]
            found |= dict.fromkeys(names, item[2])
        elif line.startswith("     "):
            found |= {key: f"{found[key]} {line.strip()}" for key in names}
    return found
