"""Graphs inside a node: the traced call of a layer or function, written in place or as a loop."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes
from keras_deepseek.deploy.onnx_writer.writer import LAYERS, Handler, NoEntryError, Writer, handles
from keras_deepseek.graph.ir import Graph, Node, Spec, Value
from keras_deepseek.graph.known_code import CannotOpenError
from keras_deepseek.graph.size_expressions import has_free_axes
from keras_deepseek.graph.sizes import free_program


def handles_keras_layer(*kinds: str, follows: str = "") -> Callable[[Handler], Handler]:
    """Registers a handler for layers of Keras by name, not for others of that name."""

    def register(handler: Handler) -> Handler:
        @functools.wraps(handler)
        def handle(writer: Writer, node: Node, *args: Any, **kwargs: Any) -> Any:
            layer = node.operation
            is_plain = type(layer) is getattr(keras.layers, node.kind) and "call" not in vars(layer)
            if not is_plain or getattr(layer, "quantization_mode", None) is not None:
                raise NoEntryError(f"{node.kind} of another class, with another call or quantized")
            return handler(writer, node, *args, **kwargs)

        handles(*kinds, follows=follows, table=LAYERS)(handle)
        return handler

    return register


def _mish(x: Any) -> Any:
    return x * keras.ops.tanh(keras.ops.softplus(x))


SYMBOLIC_ACTIVATIONS = {
    keras.activations.mish: _mish,
    keras.activations.hard_silu: keras.ops.hard_silu,
    keras.activations.sparsemax: keras.ops.sparsemax,
}
"""Keras's activations that call the framework, and the same in operations."""


@contextlib.contextmanager
def _symbolic(layer: keras.Layer) -> Iterator[None]:
    """Gives a layer and those inside it activations that can be traced, and no dropout."""
    with contextlib.ExitStack() as stack:
        for inner in flatten_layers(layer):
            attributes: dict[str, Any] = {
                name: SYMBOLIC_ACTIVATIONS[getattr(inner, name)]
                for name in ("activation", "recurrent_activation")
                if name in vars(inner) and getattr(inner, name) in SYMBOLIC_ACTIVATIONS
            }
            if type(inner) is keras.layers.SimpleRNNCell:  # It draws, also at inference.
                attributes |= {"dropout": 0.0, "recurrent_dropout": 0.0}
            stack.enter_context(own_attributes(inner, **attributes))
        yield


class _CallOf(keras.Layer):
    """A layer, or a function of one, as a layer of a list of tensors."""

    def __init__(
        self, layer: keras.Layer, function: Callable[..., Any] | None, outputs: int
    ) -> None:
        super().__init__(dtype=layer.dtype_policy, name="call")
        self.layer, self._function, self._outputs = layer, function, outputs
        self.built = True

    def call(self, inputs: Sequence[Any]) -> list[Any]:
        outputs: list[Any] = keras.tree.flatten((self._function or self.layer)(*inputs))
        return outputs

    def compute_output_spec(self, inputs: Sequence[Any]) -> list[keras.KerasTensor]:
        return [keras.KerasTensor((None,)) for _ in range(self._outputs)]  # The trace says more.


def trace_function(
    writer: Writer,
    layer: keras.Layer,
    function: Callable[..., Any] | None,
    specs: Sequence[Spec],
    outputs: int = 1,
) -> Graph:
    """Returns the graph of a layer, or a function such as its activation, at free sizes."""
    shapes = [
        tuple(None if writer.is_free(size) else size for size in spec.shape) for spec in specs
    ]
    inputs = [
        keras.Input(batch_shape=shape, dtype=spec.dtype, name=f"input_{index}")
        for index, (shape, spec) in enumerate(zip(shapes, specs, strict=True))
    ]
    model = keras.Model(inputs, _CallOf(layer, function, outputs)(inputs), name="function")
    example = [keras.KerasTensor(tuple(map(int, spec.shape)), spec.dtype) for spec in specs]
    try:
        with _symbolic(layer):
            graph, axes, reasons = free_program(model, example)
    except (CannotOpenError, ValueError, TypeError) as error:
        raise NoEntryError(f"{type(layer).__name__}: {error}") from error
    for leaf in graph.leaves.values():
        if leaf.layer_class == _CallOf.__name__:
            raise NoEntryError(f"{type(layer).__name__}, which {leaf.reason}")
    if not has_free_axes(shapes, axes):
        raise NoEntryError(f"{type(layer).__name__} fixes a size: {'; '.join(reasons)[:200]}")
    return graph


def write_in_place(writer: Writer, graph: Graph, names: dict[str, str]) -> Writer:
    """Writes a graph of one input, named by layout, and returns the writer of its values."""
    body = writer.inner(graph)
    body.nodes = writer.nodes
    for layout, name in names.items():
        body.put(Value(graph.inputs[0]), name, layout)
    body.write_nodes()
    return body


def put_function(
    writer: Writer,
    node: Node,
    function: Callable[..., Any] | None,
    spec: Spec,
    names: dict[str, str],
) -> None:
    """Puts a function of a tensor, named by layout, as the output of a layer's node.

    Without a function that is the layer itself.
    """
    graph = trace_function(writer, node.operation, function, [spec])
    if any(leaf.layer_class == node.kind for leaf in graph.leaves.values()):
        raise NoEntryError(f"{node.kind}, which {next(iter(graph.leaves.values())).reason}")
    body = write_in_place(writer, graph, names)
    (output,) = graph.outputs
    for layout in list(body.layouts(output)):
        writer.put(Value(node), body.name(output, layout), layout)


def swap_time(writer: Writer, name: str, rank: int) -> str:
    """Exchanges the axes of the batch and the time of a tensor."""
    return writer.add("Transpose", name, perm=[1, 0, *range(2, rank)])
