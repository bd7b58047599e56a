"""Operations that compute their sizes from the inputs of a program when they run."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import keras

from keras_deepseek.graph.created_tensors import Create
from keras_deepseek.graph.ir import (
    CONSTANT,
    INPUT,
    Graph,
    Node,
    Spec,
    Value,
    attributes,
    resize_reshape,
)
from keras_deepseek.graph.known_code import CannotOpenError
from keras_deepseek.graph.size_expressions import (
    OPERATORS,
    Arithmetic,
    Axis,
    Expression,
    Size,
    ValueAxis,
)

STRUCTURES = (dict, list, tuple, slice, functools.partial)
"""The classes of objects in which sizes are looked for."""
Path = tuple[str | int, ...]
"""The names and positions that lead to a number in a structure."""
Formula: TypeAlias = Any
"""An int, `["source", number, axis]` or `[operator, left, right]` of two formulas."""


@keras.saving.register_keras_serializable("keras_deepseek")
class ReadSizes(keras.Operation):
    """An operation that reads sizes from tensors when it runs.

    Args:
        operation: The operation.
        sizes: For each size: the path to it in `{"attributes": ..., "args": ..., "kwargs": ...}`,
            and its formula.
        outputs: The shape and dtype of each output, with `None` for free sizes.

    Call arguments:
        sources: The tensors whose sizes are read.
        args: The arguments of the operation.
        kwargs: Its keyword arguments.
    """

    def __init__(
        self,
        operation: keras.Operation,
        sizes: Sequence[tuple[Path, Formula]],
        outputs: Sequence[tuple[Any, str]],
    ) -> None:
        super().__init__(name=operation.name)
        self.operation = operation
        self.sizes = tuple(sizes)
        self.outputs = [(tuple(shape), dtype) for shape, dtype in outputs]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        sizes = [[list(path), formula] for path, formula in self.sizes]
        operation = keras.saving.serialize_keras_object(self.operation)
        outputs = [[list(shape), dtype] for shape, dtype in self.outputs]
        return {"operation": operation, "sizes": sizes, "outputs": outputs}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ReadSizes":
        """Returns the operation of a config."""
        operation = keras.saving.deserialize_keras_object(config["operation"])
        sizes = [(tuple(path), formula) for path, formula in config["sizes"]]
        return cls(operation, sizes, config["outputs"])

    def compute_output_spec(self, sources: Any, args: Any, kwargs: Any) -> Any:
        """Returns symbols of the outputs: no framework has to infer their shapes."""
        symbols = [keras.KerasTensor(shape, dtype) for shape, dtype in self.outputs]
        return symbols[0] if len(symbols) == 1 else symbols

    def call(self, sources: Sequence[Any], args: Any, kwargs: Any) -> Any:
        """Runs the operation with the sizes of the `sources`."""
        shapes = [keras.ops.shape(source) for source in sources]
        operation = copy.copy(self.operation)
        structure: Any = {"attributes": vars(operation), "args": args, "kwargs": kwargs}
        for path, formula in self.sizes:
            structure = _with_entry(structure, path, _evaluate(formula, shapes))
        vars(operation).update(structure["attributes"])
        return operation.call(*structure["args"], **structure["kwargs"])


def read_sizes(graph: Graph) -> None:
    """Replaces operations that hold `Size`s by ones that read them.

    Raises `CannotOpenError` if a whole layer gets a size as an argument.
    """
    _read_sizes(graph, graph, lambda value: value)


def _read_sizes(graph: Graph, whole: Graph, local: Callable[[Value], Value]) -> None:
    """Replaces the operations of a graph inside of a `whole` one.

    `local` returns the value in the graph that is one of the whole graph.
    """
    for node in graph.nodes():
        for number, inner in enumerate(node.graphs):
            _read_sizes(inner, whole, _capturing(node, number, inner, local))
        if node.kind == CONSTANT:
            if isinstance(node.content, Size):
                node.operation = Create("full", {"dtype": node.spec.dtype})
                node.args, node.content = ((), node.content), None
        elif node.operation is None:
            continue
        structure = {"args": node.args, "kwargs": node.kwargs}
        if not (node.operation is None or node.is_layer or node.graphs):
            structure["attributes"] = attributes(node.operation)
        sizes = list(_find_sizes(structure))
        if not sizes:
            continue
        if node.is_layer:
            raise CannotOpenError(f"passes a size to {node.layer}")
        # A reshape finds one size by itself, whatever it depends on.
        if node.kind == "Reshape" and len(sizes) == 1 and -1 not in node.operation.newshape:
            position = sizes[0][0][-1]
            node.operation = resize_reshape(node.operation, int(position), -1)
        else:
            _make_reader(node, sizes, whole, local)


def _capturing(
    node: Node, number: int, inner: Graph, local: Callable[[Value], Value]
) -> Callable[[Value], Value]:
    """Returns a function that makes a value one more input of a graph inside a node."""

    @functools.cache
    def capture(value: Value) -> Value:
        outside = local(value)
        inputs = Node(INPUT, [Spec(outside.shape, outside.dtype)])
        inner.inputs.append(inputs)
        captured = number - len(node.graphs)  # The last arguments are lists of what graphs read.
        node.args[captured].append(outside)
        return Value(inputs)

    return capture


def _make_reader(
    node: Node, sizes: Sequence[tuple[Path, Size]], graph: Graph, local: Callable[[Value], Value]
) -> None:
    sources: list[Value] = []

    def number_of(axis: Axis) -> int:
        value = axis.value if isinstance(axis, ValueAxis) else Value(graph.inputs[axis.input])
        value = local(value)
        if value not in sources:
            sources.append(value)
        return sources.index(value)

    formulas = [(path, _formula(size.expression, number_of)) for path, size in sizes]
    args, kwargs = _without_sizes(node.args), _without_sizes(node.kwargs)
    operation = copy.copy(node.operation)
    vars(operation).update(_without_sizes(attributes(operation)))
    outputs = [
        (tuple(None if size in graph.free_sizes else size for size in spec.shape), spec.dtype)
        for spec in node.outputs
    ]
    node.operation = ReadSizes(operation, formulas, outputs)
    node.args, node.kwargs = (tuple(sources), args, kwargs), {}
    node.kind = "ReadSizes"


def parts_of(structure: Any) -> list[tuple[str | int, Any]]:
    """Returns the parts of a structure, with names or positions."""
    if isinstance(structure, dict):
        return list(structure.items())
    if isinstance(structure, list | tuple):
        return list(enumerate(structure))
    names: tuple[str, ...] = ()
    if isinstance(structure, slice):
        names = ("start", "stop", "step")
    elif isinstance(structure, functools.partial):
        names = ("func", "args", "keywords")
    return [(name, getattr(structure, name)) for name in names]


def rebuild(structure: Any, parts: Sequence[Any]) -> Any:
    """Returns a structure like another, of other parts."""
    if isinstance(structure, dict):
        return dict(zip(structure, parts, strict=True))
    if isinstance(structure, slice):
        return slice(*parts)
    if isinstance(structure, functools.partial):
        function, args, keywords = parts
        return functools.partial(function, *args, **keywords)
    is_named = isinstance(structure, tuple) and hasattr(type(structure), "__match_args__")
    return type(structure)(*parts) if is_named else type(structure)(parts)


def _find_sizes(structure: Any, path: Path = ()) -> Iterator[tuple[Path, Size]]:
    if isinstance(structure, Size):
        yield path, structure
    for name, part in parts_of(structure):
        yield from _find_sizes(part, (*path, name))


def _without_sizes(structure: Any) -> Any:
    if isinstance(structure, Size):
        return int(structure)
    if next(_find_sizes(structure), None) is None:
        return structure
    return rebuild(structure, [_without_sizes(part) for _, part in parts_of(structure)])


def _with_entry(structure: Any, path: Path, entry: Any) -> Any:
    if not path:
        return entry
    return rebuild(
        structure,
        [
            _with_entry(part, path[1:], entry) if name == path[0] else part
            for name, part in parts_of(structure)
        ],
    )


def _formula(expression: Expression, number_of: Callable[[Axis], int]) -> Formula:
    """Returns an expression as lists, which a config may hold."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, Arithmetic):
        sides = (expression.left, expression.right)
        return [expression.operator, *(_formula(side, number_of) for side in sides)]
    return ["source", number_of(expression), expression.axis]


def _evaluate(formula: Formula, shapes: Sequence[Any]) -> Any:
    if isinstance(formula, int):
        return formula
    name, left, right = formula
    if name == "source":
        return shapes[left][right]
    return OPERATORS[name](_evaluate(left, shapes), _evaluate(right, shapes))
