"""Reads the names that a script uses from its source code."""

import ast
from pathlib import Path

_JOINING = {
    "join_cluster",
    "DataParallel",
    "ModelParallel",
    "CentralStorageStrategy",
    "MirroredStrategy",
    "MultiWorkerMirroredStrategy",
    "OneDeviceStrategy",
    "ParameterServerStrategy",
    "ParameterServerStrategyV2",
    "TPUStrategy",
}
_ENGINES = {"distributed", "distribution"}
"""The modules of JAX and Keras whose `initialize` joins the processes."""


def joins_itself(script: str) -> bool:
    """Returns True if a script joins processes or sets up devices itself.

    It does so by `join_cluster`, by `initialize` of JAX or Keras, or by an object of
    `keras.distribution` or `tf.distribute`. Some of these fail or crash if the processes have
    already joined.
    """
    return any(_is_joining(node) for node in ast.walk(ast.parse(Path(script).read_bytes())))


def _is_joining(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute) and node.attr == "initialize":
        return _name(node.value) in _ENGINES
    return _name(node) in _JOINING


def _name(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
            return name
    return ""
