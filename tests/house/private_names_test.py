"""Private names of Keras stand in `backend/keras_private/` alone, also as strings.

Ruff's SLF001 sees `model._name`. It sees neither `getattr(model, "_name")`, nor
`vars(model)["_name"]`, nor `self._name` in a subclass of a class of Keras.
"""

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

MAY = ("backend/keras_private", "graph/trace.py")
OURS = {"training/parameter_server/pickled_trainer.py": "_seed"}  # Of `Trainer`.
PRIVATE = re.compile(r"_[a-z]\w*")
BY_STRING = {
    *("getattr", "setattr", "hasattr", "delattr", "__getattribute__", "__setattr__", "__delattr__"),
    *("get", "pop", "setdefault"),
}


@functools.cache
def keras_names() -> set[str]:
    """Returns the private names in the source of Keras, which need not be importable."""
    spec = importlib.util.find_spec("keras")
    if spec is None or spec.origin is None:
        pytest.skip("Keras is not installed.")
    files = (Path(spec.origin).parent / "src").rglob("*.py")
    return {name for path in files for name in PRIVATE.findall(path.read_text(encoding="utf-8"))}


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def defined_names(tree: ast.AST) -> set[str]:
    """Returns the names that a module gives to attributes, functions and variables itself."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
    return names


def used_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields lines and private names: by a string, and of `self`."""
    for node in ast.walk(tree):
        strings: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            strings = node.args if name in BY_STRING else []
        elif isinstance(node, ast.Subscript):
            strings = [node.slice]
        elif isinstance(node, ast.Attribute) and is_self(node.value):
            strings = [ast.Constant(node.attr)]
        for string in strings:
            value = string.value if isinstance(string, ast.Constant) else None
            if isinstance(value, str) and PRIVATE.fullmatch(value):
                yield node.lineno, value


def find_violations(package: Path, names: set[str]) -> list[str]:
    """Returns the places where a module uses a private name that only Keras defines."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in package.rglob("*.py")}
    defined = {path: defined_names(tree) for path, tree in trees.items()}
    violations = []
    for path, tree in trees.items():
        module_path = path.relative_to(package).as_posix()
        if module_path.startswith(MAY):
            continue
        # A class has the names of its bases, which its module imports.
        imported = {
            package.parent / (node.module.replace(".", "/") + ".py")
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
        }
        defined_or_inherited = set().union(
            defined[path], *(defined.get(other, set()) for other in imported)
        )
        violations += [
            f"{module_path}:{line}: {name}"
            for line, name in used_names(tree)
            if name in names and name not in defined_or_inherited and OURS.get(module_path) != name
        ]
    return violations


def test_the_package_uses_no_private_name_of_keras_elsewhere(root: Path):
    assert find_violations(root / "keras_deepseek", keras_names()) == []


@pytest.mark.parametrize(
    "text",
    [
        'getattr(model, "_functional", None)',
        'hasattr(layer, "_build_shapes_dict")',
        'setattr(model, "_compile_config", None)',
        'vars(layer)["_dtype_policy"]',
        'vars(model).pop("_jax_state", None)',
        'model.__dict__["_loss_tracker"]',
        'options.get("_use_cached_eval_dataset")',
        'object.__setattr__(model, "_metrics", [])',
        "class Mine(keras.callbacks.Callback):\n    def on_end(self):\n        return self._model",
    ],
)
def test_a_planted_name_is_found(tmp_path: Path, text: str):
    package = tmp_path / "keras_deepseek"
    (package / "layers").mkdir(parents=True)
    (package / "layers/mine.py").write_text(text, encoding="utf-8")
    assert len(find_violations(package, keras_names())) == 1


def test_names_of_the_package_s_own_are_no_violation(tmp_path: Path):
    package = tmp_path / "keras_deepseek"
    package.mkdir()
    (package / "base.py").write_text(
        "class Base:\n    def __init__(self):\n        self._model = 1", encoding="utf-8"
    )
    (package / "mine.py").write_text(
        "from keras_deepseek.base import Base\n"
        "class Mine(Base):\n    def get(self):\n        return self._model",
        encoding="utf-8",
    )
    assert find_violations(package, keras_names()) == []
