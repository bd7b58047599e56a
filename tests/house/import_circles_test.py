"""No modules import each other in a circle, also not for types alone or inside of functions."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "keras_deepseek"


def read_imports(folder: Path) -> dict[str, set[str]]:
    """Returns the modules of a package that each of its modules imports.

    An `__init__` imports nothing here: what it exports may import its package.
    """
    paths = {_module_name(folder, path): path for path in folder.rglob("*.py")}
    return {
        name: set() if path.stem == "__init__" else set(_find_imports(path, name, paths))
        for name, path in paths.items()
    }


def _module_name(folder: Path, path: Path) -> str:
    parts = path.relative_to(folder.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _find_imports(path: Path, name: str, modules: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        imported: list[str] = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            imported = [member if member in modules else str(node.module) for member in members]
        yield from (module for module in imported if module in modules and module != name)


def find_circles(imports: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """Returns the groups of modules that reach each other by imports (Tarjan)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    circles: set[frozenset[str]] = set()

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        path.append(module)
        for imported in imports[module]:
            if imported not in order:
                visit(imported)
            if imported in path:
                lowest[module] = min(lowest[module], lowest[imported])
        if lowest[module] == order[module]:
            start = path.index(module)
            circle = frozenset(path[start:])
            del path[start:]
            if len(circle) > 1:
                circles.add(circle)

    for module in imports:
        if module not in order:
            visit(module)
    return circles


def test_no_modules_import_each_other_in_a_circle():
    assert sorted(map(sorted, find_circles(read_imports(PACKAGE)))) == []


def test_a_circle_of_types_is_found(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text("from package import b\nfrom package.c import D")
    typed = "import typing\nif typing.TYPE_CHECKING:\n    from package.a import A"
    (package / "b.py").write_text(typed)
    (package / "c.py").write_text("D = 1")
    assert find_circles(read_imports(package)) == {frozenset({"package.a", "package.b"})}
