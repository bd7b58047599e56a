"""Writes the pages of the API reference: `python docs/write_reference.py OUT`.

Each room has a folder, with a page for each of its public names and a table of them. The pages hold
directives for mkdocstrings, and links to the guides that use the name. Griffe reads the code, and
nothing is imported. A public name without a docstring, an example or a default is an error.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import griffe
from keras_docstrings import KerasDocstrings

ROOT = Path(__file__).parents[1]
PACKAGE = "keras_deepseek"
ROOMS_WITH_EXAMPLES = ("callbacks", "deploy", "graph", "inference", "layers", "models", "training")
RELATIVE_LINK = re.compile(r"\]\((?!https?://)([^)\s]*[./#][^)\s]*)\)")
NOT_MADE_BY_USERS = re.compile(r"Error$|Exception$|^Protocol")
KERAS_IO = "https://keras.io/api/layers/"
INDEX = """\
---
title: {room}
---

# {package}.{room} {{ #{package}.{room} }}

{summary}

| name | what it is |
|---|---|
"""
PAGE = """\
---
title: {name}
---

`{source}`, line {line}
{{ .doc-source }}

::: {path}
    options:
      heading_level: 1
"""
SEEN_IN = "\n## Seen in {{ data-search-exclude }}\n\n{guides}"


def write_reference(out: Path, root: Path = ROOT) -> None:
    """Writes the pages, or raises `SystemExit` with a line for each fault of a docstring."""
    code = griffe.load(
        PACKAGE,
        search_paths=[root],
        extensions=griffe.load_extensions(KerasDocstrings),
        allow_inspection=False,
        resolve_aliases=True,
    )
    rooms = _read_names(root / PACKAGE / "__init__.py", "_PUBLIC_MODULES")
    names = {room: _read_names(code[room].filepath, "__all__") for room in rooms}
    public = {f"{PACKAGE}.{room}.{name}" for room in rooms for name in names[room]}
    guides = find_guides(root / "guides")
    faults: set[str] = set()
    start = "# API reference\n\n| sub-package | what it is |\n|---|---|\n"
    for room in rooms:
        summary = _summarize(code[room])
        start += f"| [`{PACKAGE}.{room}`]({room}/index.md) | {summary} |\n"
        index = INDEX.format(package=PACKAGE, room=room, summary=summary)
        for name in names[room]:
            path, target = f"{PACKAGE}.{room}.{name}", code[room][name]
            target = target.final_target if target.is_alias else target
            if target.is_attribute and str(target.value).startswith("keras."):
                continue  # Keras's, by another name.
            if target.is_attribute and str(target.value) in names[room]:
                index += f"| `{name}` | A second name of `{target.value}`. |\n"
                continue
            home = target.path if target.path in public else path
            index += f"| [`{name}`][{home}] | {_summarize(target)} |\n"
            if home != path:
                continue  # Its page is in the room that defines it.
            faults.update(find_faults(target, root, needs_example=room in ROOMS_WITH_EXAMPLES))
            source = target.filepath.relative_to(root).as_posix()
            page = PAGE.format(name=name, path=path, source=source, line=target.lineno)
            guide_links = "".join(
                f"- [{title}](../../../guides/{stem}.md)\n" for stem, title in guides[path]
            )
            _write(
                out / room / f"{name}.md",
                page + (SEEN_IN.format(guides=guide_links) if guide_links else ""),
            )
        if room == "layers":
            index += "\n" + describe_keras_layers(root, set(names[room]))
        _write(out / room / "index.md", index)
    _write(out / "index.md", start)
    if faults:
        sys.exit("\n".join(sorted(faults)))


def find_faults(target: griffe.Object, root: Path, needs_example: bool) -> Iterator[str]:
    """Yields what the docstring of a public name lacks, with file and line."""
    location = f"{target.filepath.relative_to(root)}:{target.lineno}"
    if target.docstring is None:
        yield f"{location}: {target.name} has no docstring."
    members = [
        member for name, member in target.members.items() if name[0] != "_" and not member.is_alias
    ]
    for member in (target, *members):
        for link in RELATIVE_LINK.findall(member.docstring.value if member.docstring else ""):
            yield f"{_find_line(member, link, root)}: {link} is no address."
    parents = (target, *target.mro()) if target.is_class else ()
    bases = [str(base) for parent in parents for base in parent.bases]
    is_used = not target.is_attribute and not any(map(NOT_MADE_BY_USERS.search, bases))
    if needs_example and is_used and target.docstring and "```pycon" not in target.docstring.value:
        yield f"{location}: {target.name} has no `Example:` that runs."
    if target.is_class:
        for name, method in target.functions.items():
            if not name.startswith("_"):
                yield from _find_missing_defaults(method, root)
    if not target.is_attribute:
        yield from _find_missing_defaults(target, root)


def _find_missing_defaults(function: griffe.Function, root: Path) -> Iterator[str]:
    for parameter in function.parameters if function.docstring else ():
        entry = rf"^ {{4}}{parameter.name}: .*(?:\n {{5}}.*)*"
        text = re.search(entry, function.docstring.value, re.MULTILINE)
        if text and parameter.default and not re.search(r"(?i)\bdefaults?\s+to\b", text[0]):
            yield (
                f"{_find_line(function, f'{parameter.name}: ', root)}: `{parameter.name}` of "
                f"{function.name} has a default that its docstring does not name."
            )


def _find_line(target: griffe.Object, text: str, root: Path) -> str:
    """Returns the file, and the line from the docstring's first on that has a text."""
    lines = target.filepath.read_text(encoding="utf-8").split("\n")
    first = target.docstring.lineno
    line_numbers = (number for number in range(first, len(lines) + 1) if text in lines[number - 1])
    return f"{target.filepath.relative_to(root)}:{next(line_numbers, first)}"


def find_guides(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Returns the guides that use each public name, as pairs of a file's stem and a title."""
    guides: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in sorted(folder.glob("[0-9]*.py")):
        text = path.read_text(encoding="utf-8")
        title = re.search(r"^Title: (.+)$", text, re.MULTILINE)
        guide = (path.stem, title[1] if title else path.stem)
        imported, used = {}, set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                imported |= {
                    imported_name.asname
                    or imported_name.name: f"{node.module}.{imported_name.name}"
                    for imported_name in node.names
                }
            elif isinstance(node, ast.Name | ast.Attribute):
                used.add(ast.unparse(node))
        for name in used:
            head, dot, attributes = name.partition(".")
            guides[imported.get(head, head) + dot + attributes].append(guide)
    return guides


def describe_keras_layers(root: Path, ours: set[str]) -> str:
    """Returns the table of what `layers` hands on from Keras, with links to keras.io.

    The names are those of the frozen public API, which a test compares with the installed Keras.
    """
    frozen = (root / "tests/house/public_api.txt").read_text(encoding="utf-8")
    names = set(re.findall(rf"^{PACKAGE}\.layers\.(\w+)$", frozen, re.MULTILINE))
    names -= ours - {"LayerNorm"}
    rows = "## Keras's layers\n\nThe classes of Keras itself.\n\n| kind | layers |\n|---|---|\n"
    for line in (root / "docs/keras_layers.txt").read_text(encoding="utf-8").splitlines():
        folder, colon, listed = line.partition(": ")
        if colon and not line.startswith("#"):
            pages = dict((*entry.split("="), _snake_case(entry))[:2] for entry in listed.split())
            layer_links = [
                f"[`{layer_name}`]({KERAS_IO}{folder}/{pages[layer_name]}/)"
                for layer_name in pages
                if layer_name in names
            ]
            kind = folder.rpartition("/")[2].removesuffix("_layers").replace("_", " ")
            rows += f"| [{kind}]({KERAS_IO}{folder}/) | {', '.join(layer_links)} |\n"
            names -= set(pages)
    unlisted = ", ".join(f"`{layer_name}`" for layer_name in sorted(names))
    return rows + f"| [others]({KERAS_IO}) | {unlisted} |\n"


def _snake_case(name: str) -> str:
    """Returns the name of a layer as keras.io's addresses have it: `conv_lstm1d`."""
    name = re.sub(r"Conv(?=\dD)", "Convolution", name.replace("ReLU", "Relu"))
    name = re.sub(r"(?<=\d)D", "d", name)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _read_names(file: Path, variable: str) -> list[str]:
    """Returns the names that a module first assigns to a variable."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == variable:
            return list(ast.literal_eval(node.value))
    raise ValueError(f"{file} assigns nothing to {variable}.")


def _summarize(target: griffe.Object) -> str:
    """Returns the first paragraph of a docstring for the cell of a table."""
    text = target.docstring.value.partition("\n\n")[0] if target.docstring else ""
    return " ".join(text.split()).replace("|", "\\|")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
