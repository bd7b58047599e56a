"""Each framework implements the six protocols of `backend`, with their signatures.

That no method is missing, `abc` holds. Read from the source, so that it needs no framework.
"""

import ast
from pathlib import Path

import pytest

FRAMEWORKS = {"jax": "Jax", "tensorflow": "TensorFlow", "torch": "Torch"}
PROTOCOLS = ("Devices", "Compute", "Inference", "Step", "Distribution", "Export")


def read_methods(folder: Path, class_name: str) -> dict[str, tuple[str, bool]]:
    """Returns the signature of each public method of a class, and whether it has a docstring."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("*.py"))
    (class_node,) = (
        node
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    return {
        node.name: (
            f"({ast.unparse(node.args)}) -> {node.returns and ast.unparse(node.returns)}",
            ast.get_docstring(node) is not None,
        )
        for node in class_node.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_framework_implements_a_protocol_with_its_signatures(
    root: Path, framework: str, protocol: str
):
    folder = root / "keras_deepseek/backend"
    described = read_methods(folder / "protocols", protocol)
    offered = read_methods(folder / framework, FRAMEWORKS[framework] + protocol)
    expected = {name: (described[name][0], False) for name in offered if name in described}
    assert offered == expected  # The docstrings stand in the protocol alone.


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_method_of_a_protocol_is_described(root: Path, protocol: str):
    methods = read_methods(root / "keras_deepseek/backend/protocols", protocol)
    assert [name for name, (_, is_described) in methods.items() if not is_described] == []
