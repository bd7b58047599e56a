"""The three folders of `backend` offer one set of functions, the one that `Backend` describes.

Read from the source, so that it needs none of the three frameworks.
"""

import ast
from pathlib import Path

import pytest

BACKENDS = ("jax", "tensorflow", "torch")


def read_functions(tree: ast.AST, aliases: dict[str, str]) -> dict[str, str]:
    """Returns each public function's signature and the first line of its docstring."""
    return {
        node.name: _describe(node, aliases)
        for node in ast.iter_child_nodes(tree)
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def _describe(function: ast.FunctionDef, aliases: dict[str, str]) -> str:
    arguments = function.args
    arguments.args = [argument for argument in arguments.args if argument.arg != "self"]
    for node in ast.walk(arguments):
        if isinstance(node, ast.arg) and node.annotation is not None:
            node.annotation = _unquote(node.annotation)
    returns = ast.unparse(_unquote(function.returns)) if function.returns else ""
    for name, meaning in aliases.items():
        returns = returns.replace(name, meaning)
    first_line = (ast.get_docstring(function) or "").partition("\n")[0]
    return f"({ast.unparse(arguments)}) -> {returns}: {first_line}"


def _unquote(annotation: ast.expr) -> ast.expr:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return ast.parse(annotation.value, mode="eval").body
    return annotation


def read_folder(folder: Path) -> dict[str, dict[str, str]]:
    """Returns the functions of each file by its name; a file may serve the others of its folder."""
    found = {
        path.name: read_functions(ast.parse(path.read_text(encoding="utf-8")), {})
        for path in sorted(folder.glob("*.py"))
    }
    return {name: functions for name, functions in found.items() if functions}


@pytest.fixture(scope="module")
def protocol(root: Path) -> dict[str, str]:
    """Returns the functions that `Backend` describes, its type aliases written out."""
    tree = ast.parse((root / "keras_deepseek/backend/__init__.py").read_text(encoding="utf-8"))
    aliases = {
        node.targets[0].id: ast.unparse(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    (backend,) = (
        node
        for node in ast.iter_child_nodes(tree)
        if isinstance(node, ast.ClassDef) and node.name == "Backend"
    )
    return read_functions(backend, aliases)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_the_folders_hold_the_same_files_functions_and_signatures(root: Path, backend: str):
    folder = root / "keras_deepseek/backend"
    assert read_folder(folder / backend) == read_folder(folder / BACKENDS[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_offers_what_the_protocol_describes(
    root: Path, protocol: dict[str, str], backend: str
):
    files = read_folder(root / "keras_deepseek/backend" / backend)
    offered = {name: text for functions in files.values() for name, text in functions.items()}
    assert offered == protocol


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_hands_on_each_of_its_functions(
    root: Path, protocol: dict[str, str], backend: str
):
    text = (root / "keras_deepseek/backend" / backend / "__init__.py").read_text(encoding="utf-8")
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert names == sorted(protocol)
