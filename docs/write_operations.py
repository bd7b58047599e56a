"""Writes the page of all operations in ONNX files: `python docs/write_operations.py`.

A test in `tests/house/` fails if `docs/reference/onnx_operations.md` is not up to date.
"""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import keras

from keras_deepseek.deploy import onnx_writer
from keras_deepseek.deploy.onnx_writer.writer import LAYERS, OPERATOR_OPSETS, TABLE, Entry

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/onnx_operations.md"
TESTS = ROOT / "tests/deploy/onnx_writer"
MODULES = {"ops": keras.ops, "ops.image": keras.ops.image, "activations": keras.activations}
OF_THIS_PACKAGE = {"Create": " of a free size", "_OpaqueOperation": " in sparse attention"}
"""What the operations of this package stand for."""
VERSION = ".".join(keras.__version__.split(".")[:2])
INTRODUCTION = f"""# Operations in ONNX files

The table by which [the traced program](../explanation/export_routes.md#the-traced-program)
becomes an [ONNX file](onnx_files.md), for Keras {VERSION}. `python docs/write_operations.py` writes
this page from the code.

- Each operation is written from opset 18 on. **One operator from** is the opset from which ONNX
  has it as one operator, if that is a later one.
- **Follows**: whose numbers the file has where Keras's backends differ from each other. The export
  compares the file with the model, and takes the next route if they differ on its samples. Floats
  below 1.2e-38 are 0 on JAX and TensorFlow; a file has the numbers of PyTorch.
- **Test**: the file in `tests/deploy/onnx_writer/` that compares the operation with Keras, or with
  NumPy where the backends differ.
- A layer is listed if a trace can't open it, always or in some case. Other layers are written by
  their operations.
"""
HEAD = "| name | one operator from | follows | test |\n|---|---|---|---|\n"
ABSENT = """## Operations without an entry

For these the [next route](../explanation/export_routes.md) is tried, a framework's exporter, as for
a case that an entry refuses:
"""


def write_page() -> str:
    """Returns the text of the page."""
    functions = find_functions()
    absent = sorted(name for kind in functions.keys() - TABLE for name in functions[kind])
    names = textwrap.fill(", ".join(f"`{name}`" for name in absent), 100)
    operations, layers = write_rows(TABLE, functions), write_rows(LAYERS, {})
    parts = [INTRODUCTION, "## Operations\n", *operations, "## Layers\n", *layers]
    return "\n".join([*parts, ABSENT, f"{names}.\n"])


def write_rows(table: dict[str, Entry], functions: dict[str, list[str]]) -> Iterator[str]:
    """Yields the rows of each file of a table."""
    tests = {path.relative_to(TESTS): read_names(path) for path in sorted(TESTS.rglob("*_test.py"))}
    by_file = sorted(table.items(), key=lambda item: file_of(item[1]))
    for file, entries in itertools.groupby(by_file, key=lambda item: file_of(item[1])):
        rows = []
        for kind, entry in entries:
            names = functions.get(kind, [f"layers.{kind}" if table is LAYERS else kind])
            opset = OPERATOR_OPSETS.get(kind, "") if table is TABLE else ""
            test = find_test(file, {name.split(".")[-1] for name in names}, tests)
            name = ", ".join(f"`{name}`" for name in names) + OF_THIS_PACKAGE.get(kind, "")
            rows.append((names, f"| {name} | {opset} | {entry.follows} | {test} |\n"))
        yield f"### `{file}`\n\n{HEAD}{''.join(row for _, row in sorted(rows))}"


def file_of(entry: Entry) -> str:
    """Returns the file of an entry, from the folder of the writer."""
    module = entry.handler.__module__.removeprefix(f"{onnx_writer.__name__}.")
    return f"{module.replace('.', '/')}.py"


def find_functions() -> dict[str, list[str]]:
    """Returns the public functions of Keras by the class of the operation that each one calls."""
    functions = {
        "Create": [f"ops.{name}" for name in ("arange", "eye", "full", "ones", "zeros")],
        "_OpaqueOperation": ["compute.top_k"],
        "Branch": ["ops.cond", "ops.switch"],
        "ForEach": ["ops.associative_scan", "ops.map", "ops.scan", "ops.vectorized_map"],
        "While": ["ops.fori_loop", "ops.while_loop"],
    }
    control_flow = {name for kind in ("Branch", "ForEach", "While") for name in functions[kind]}
    for module_name, module in MODULES.items():
        for name, function in inspect.getmembers(module, inspect.isfunction):
            for kind in operations_of(function):
                if f"{module_name}.{name}" in control_flow:
                    continue
                if module is not keras.activations or kind in TABLE.keys() - functions.keys():
                    functions.setdefault(kind, []).append(f"{module_name}.{name}")
    return functions


def operations_of(function: Callable[..., object]) -> Iterator[str]:
    """Yields the names of the operation classes that a function names."""
    for name in function.__code__.co_names:
        kind = function.__globals__.get(name)
        if inspect.isclass(kind) and issubclass(kind, keras.Operation):
            yield name


def read_names(path: Path) -> set[str]:
    """Returns the attributes and strings of a test file, which name the operations it tests."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return attributes | {str(node.value) for node in nodes if isinstance(node, ast.Constant)}


def find_test(file: str, names: set[str], tests: dict[Path, set[str]]) -> str:
    """Returns the test file that has one of the names: that of the table file, else the first."""
    paths = [path for path, words in tests.items() if names & words]
    paths.sort(key=lambda path: path.with_name(path.name.replace("_test", "")) != Path(file))
    return f"`{paths[0]}`" if paths else "none"


if __name__ == "__main__":
    PAGE.write_text(write_page(), encoding="utf-8")
