"""Operations that call functions, such as `ops.cond` and `ops.scan`, with inner graphs.

The functions are traced on symbols of their own. Tensors from outside that a function reads are
inputs of its graph as well, after its arguments. What a loop's function computes without its
arguments is computed once, outside. Weights and constants stay where they are read.
"""

import contextlib
import functools
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol

import keras
from keras import ops, tree

from keras_deepseek.backend.keras_private.layers import infers_shapes
from keras_deepseek.backend.keras_private.replaced_functions import replaced_functions
from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes
from keras_deepseek.graph.graph_operations import Branch, ForEach, While
from keras_deepseek.graph.ir import CONSTANT, INPUT, WEIGHT, Graph, Node, Spec, Value, constant_of
from keras_deepseek.graph.known_code import CannotOpenError


class History(Protocol):
    """The values of the symbols of a trace."""

    def make_symbol(self, value: Value) -> keras.KerasTensor:
        """Returns a new symbol for a value."""

    def value(self, target: keras.KerasTensor, layer: str) -> Value:
        """Returns the value of a symbol, whose nodes belong to a layer."""

    def branch(self) -> contextlib.AbstractContextManager[Collection[int]]:
        """Forgets at the end what is set in it; yields the ids of the nodes known before."""


class ControlFlow:
    """Records calls of functions of `keras.ops` that call functions, in one trace.

    Args:
        history: The values of the trace's symbols.
        layer: Returns the path of the layer that is being traced.
    """

    def __init__(self, history: History, layer: Callable[[], str]) -> None:
        self._history, self._layer = history, layer

    @contextlib.contextmanager
    def recording(self, operations: Iterable[keras.Operation]) -> Iterator[None]:
        """Context manager in which the functions record, and some operations of a model's graph."""
        recorders: dict[str, Callable[..., Any]] = {
            "associative_scan": associative_scan,
            "cond": self._cond,
            "fori_loop": fori_loop,
            "map": self._map,
            "scan": self._scan,
            "switch": switch,
            "vectorized_map": self._map,
            "while_loop": self._while_loop,
        }
        functions = {name: functools.partial(_run, record) for name, record in recorders.items()}
        with replaced_functions(**functions), contextlib.ExitStack() as stack:
            for operation in operations:
                function = _CALLS.get(type(operation).__name__)
                if function is not None and not isinstance(operation, keras.Layer):
                    call = functools.partial(function, operation)
                    stack.enter_context(own_attributes(operation, symbolic_call=call))
            yield

    def _cond(self, pred: Any, true_fn: Any, false_fn: Any) -> Any:
        if not isinstance(pred, keras.KerasTensor):
            return true_fn() if pred else false_fn()
        for function in (true_fn, false_fn):  # What was computed before stays outside.
            cells = getattr(function, "__closure__", None) or ()
            contents = [cell.cell_contents for cell in cells if cell != types.CellType()]
            for symbol in tree.flatten(contents):
                if isinstance(symbol, keras.KerasTensor):
                    self._history.value(symbol, self._layer())
        graphs, captured, structures = [], [], []
        for function in (true_fn, false_fn):
            with self._history.branch() as outside:
                structure, values = self._call(function)
                graph, outer_values = self._close([], values, outside)
            graphs.append(graph)
            captured.append(list(map(self._history.make_symbol, outer_values)))
            structures.append(structure)
        tree.assert_same_structure(*structures)
        first, second = (graph.outputs for graph in graphs)
        _check_alike("ops.cond, whose branches have", first, second)
        outputs = Branch(graphs).symbolic_call(self._flag(pred), *captured) if first else []
        return _packed(structures[0], outputs)

    def _map(self, f: Any, xs: Any) -> Any:
        return self._scan(lambda _, x: ((), f(x)), (), xs)[1]

    def _scan(
        self,
        f: Any,
        init: Any,
        xs: Any = None,
        length: Any = None,
        reverse: bool = False,
        unroll: Any = 1,
    ) -> Any:
        carry = self._symbols(init)
        steps = [] if xs is None else self._symbols(xs)
        sequences = steps or self._symbols(ops.arange(length))
        sizes = {int(sequence.shape[0]) for sequence in sequences}
        if len(sizes) > 1 or (length is not None and int(length) not in sizes):
            raise CannotOpenError(f"uses ops.scan over sequences of the sizes {sorted(sizes)}")

        def step(*arguments: Any) -> Any:
            elements = arguments[len(carry) : len(carry) + len(steps)]
            x = None if xs is None else tree.pack_sequence_as(xs, elements)
            return f(tree.pack_sequence_as(init, arguments[: len(carry)]), x)

        specs = [Spec(tuple(symbol.shape), symbol.dtype) for symbol in carry]
        specs += [Spec(tuple(symbol.shape[1:]), symbol.dtype) for symbol in sequences]
        (new, results), graph, captured = self._trace_loop(step, specs)
        count = len(tree.flatten(new))
        _check_alike("ops.scan, whose carry gets", carry, graph.outputs[:count])
        shapes = [(sequences[0].shape[0], *value.shape) for value in graph.outputs[count:]]
        operation = ForEach(graph, shapes, bool(reverse))
        outputs = operation.symbolic_call(carry, sequences, captured)
        return _packed(init, outputs[:count]), _packed(results, outputs[count:])

    def _while_loop(
        self, cond: Any, body: Any, loop_vars: Any, maximum_iterations: Any = None
    ) -> Any:
        is_single = not isinstance(loop_vars, tuple | list)
        first = (loop_vars,) if is_single else tuple(loop_vars)
        variables = self._symbols(first)

        def step(*arguments: Any) -> Any:
            new = body(*tree.pack_sequence_as(first, arguments))
            new = (new,) if is_single else tuple(new)
            return self._flag(cond(*new)), new

        specs = [Spec(tuple(symbol.shape), symbol.dtype) for symbol in variables]
        _, graph, captured = self._trace_loop(step, specs)
        _check_alike("ops.while_loop, whose variables get", variables, graph.outputs[1:])
        condition = self._flag(cond(*tree.pack_sequence_as(first, variables)))
        operation = While([graph])
        outputs = operation.symbolic_call(condition, maximum_iterations, variables, captured)
        packed = _packed(first, outputs)
        return packed[0] if is_single else packed

    def _trace_loop(
        self, step: Callable[..., Any], specs: Sequence[Spec]
    ) -> tuple[Any, Graph, list[keras.KerasTensor]]:
        """Returns the outputs of a step, its graph, and the tensors that it reads from outside."""
        nodes = [Node(INPUT, [spec]) for spec in specs]
        symbols = [self._history.make_symbol(Value(node)) for node in nodes]
        outputs, values = self._call(step, *symbols)
        graph, captured = self._close(nodes, values)
        return outputs, graph, list(map(self._history.make_symbol, captured))

    def _call(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, list[Value]]:
        """Calls a function, and returns the structure of its outputs, and their values."""
        outputs = function(*arguments)
        symbols = self._symbols([tensor for tensor in tree.flatten(outputs) if tensor is not None])
        return outputs, [self._history.value(symbol, self._layer()) for symbol in symbols]

    def _symbols(self, structure: Any) -> list[keras.KerasTensor]:
        """Returns the symbols of symbols, tensors or numbers, in flat order."""
        return list(map(self._symbol, tree.flatten(structure)))

    def _symbol(self, tensor: Any) -> keras.KerasTensor:
        if isinstance(tensor, bool | int | float):
            kind = next(kind for kind in (bool, int, float) if isinstance(tensor, kind))
            tensor = ops.full((), tensor, ops.convert_to_tensor(kind()).dtype)
        if isinstance(tensor, keras.KerasTensor):
            return tensor
        return self._history.make_symbol(constant_of(ops.convert_to_tensor(tensor)))

    def _flag(self, condition: Any) -> keras.KerasTensor:
        """Returns a condition as a boolean scalar."""
        flag = ops.cast(self._symbol(condition), "bool")
        if any(int(size) != 1 for size in flag.shape):
            raise CannotOpenError(f"uses a condition of the shape {tuple(flag.shape)}")
        return ops.reshape(flag, ()) if flag.shape else flag

    def _close(
        self, nodes: list[Node], values: list[Value], outside: Collection[int] | None = None
    ) -> tuple[Graph, list[Value]]:
        """Returns the graph of a function, and the values that it reads from outside.

        Inside are the nodes that are not `outside`, else those that depend on the inputs.
        """
        graph = Graph(list(nodes), values, [None] * len(values), [0] * len(values), {})
        inside = {id(node) for node in nodes}
        captured: dict[Value, Value] = {}

        def capture(value: Value) -> Value:
            if id(value.node) in inside or value.node.kind in (CONSTANT, WEIGHT):
                return value
            if value not in captured:
                spec = Spec(value.shape, value.dtype)
                captured[value] = Value(Node(INPUT, [spec]))
            return captured[value]

        for node in graph.nodes():
            if outside is None:
                is_inside = any(id(value.node) in inside for value in node.values())
            else:
                is_inside = id(node) not in outside
            if is_inside:
                inside.add(id(node))
                node.args, node.kwargs = node.map_values(capture)
        graph.outputs = list(map(capture, values))
        graph.inputs += [value.node for value in captured.values()]
        return graph, list(captured)


_CALLS: dict[str, Callable[..., Any]] = {
    "AssociativeScan": lambda op, f, elems: ops.associative_scan(f, elems, op.reverse, op.axis),
    "Cond": lambda _, pred, true_fn, false_fn: ops.cond(pred, true_fn, false_fn),
    "ForiLoop": lambda op, init_val: ops.fori_loop(op.lower, op.upper, op.body_fun, init_val),
    "Map": lambda _, f, xs: ops.map(f, xs),
    "Scan": lambda op, f, init, xs=None: ops.scan(f, init, xs, op.length, op.reverse),
    "Switch": lambda _, index, branches, *operands: ops.switch(index, branches, *operands),
    "VectorizedMap": lambda op, elements: ops.vectorized_map(op.function, elements),
    "WhileLoop": lambda op, loop_vars: ops.while_loop(
        op.cond, op.body, loop_vars, op.maximum_iterations
    ),
}
"""The calls of Keras's operations in the graph of a functional model, by class."""


def _run(
    record: Callable[..., Any], original: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Records a call, but not while Keras infers the shapes of a layer."""
    return (original if infers_shapes() else record)(*args, **kwargs)


def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    """Computes `ops.switch` by `ops.cond`."""
    if len(branches) == 1:
        return branches[0](*operands)
    first, *others = branches
    return ops.cond(
        index <= 0, lambda: first(*operands), lambda: switch(index - 1, others, *operands)
    )


def fori_loop(lower: Any, upper: Any, body_fun: Callable[..., Any], init_val: Any) -> Any:
    """Computes `ops.fori_loop` by `ops.while_loop`."""

    def step(index: Any, value: Any) -> tuple[Any, Any]:
        return index + 1, body_fun(index, value)

    def goes_on(index: Any, _: Any) -> Any:
        return index < upper

    return ops.while_loop(goes_on, step, (lower, init_val), upper - lower)[1]


def associative_scan(
    f: Callable[..., Any], elems: Any, reverse: bool = False, axis: int = 0
) -> Any:
    """Computes `ops.associative_scan` by `ops.scan`, one element after another."""
    tensors = tree.map_structure(lambda x: ops.flip(x, axis) if reverse else x, elems)
    tensors = tree.map_structure(lambda x: ops.moveaxis(x, axis, 0), tensors)

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        both = (tree.map_structure(lambda t: ops.expand_dims(t, axis), t) for t in (carry, x))
        result = tree.map_structure(lambda t: ops.squeeze(t, axis), f(*both))
        return result, result

    first = tree.map_structure(lambda x: x[0], tensors)
    _, others = ops.scan(step, first, tree.map_structure(lambda x: x[1:], tensors))

    def joined(first: Any, others: Any) -> Any:
        whole = ops.moveaxis(ops.concatenate([ops.expand_dims(first, 0), others]), 0, axis)
        return ops.flip(whole, axis) if reverse else whole

    return tree.map_structure(joined, first, others)


def _check_alike(text: str, before: Sequence[Any], after: Sequence[Any]) -> None:
    specs = [[(tuple(map(int, x.shape)), x.dtype) for x in tensors] for tensors in (before, after)]
    if specs[0] != specs[1]:
        raise CannotOpenError(f"uses {text} other shapes or dtypes: {specs[0]}, {specs[1]}")


def _packed(structure: Any, tensors: Sequence[Any]) -> Any:
    """Returns tensors in a structure that has `None` too."""
    remaining = iter(tensors)
    flat = [None if leaf is None else next(remaining) for leaf in tree.flatten(structure)]
    return tree.pack_sequence_as(structure, flat)
