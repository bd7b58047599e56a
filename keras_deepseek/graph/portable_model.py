"""A traced model as a Functional model, which another process loads without the model's classes."""

import copy
from typing import Any

import keras
from keras import ops, tree

from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.errors import ExportError
from keras_deepseek.graph.ir import CONSTANT, INPUT, WEIGHT, Node, Value
from keras_deepseek.graph.known_code import CannotOpenError
from keras_deepseek.graph.model_lock import lock_of
from keras_deepseek.graph.optimized_model import OptimizedModel
from keras_deepseek.graph.plans import Plan


@keras.saving.register_keras_serializable("keras_deepseek")
class HeldWeight(keras.Layer):
    """A layer that returns its one weight, for any input, in the dtype `read_dtype`."""

    def __init__(
        self, weight_shape: tuple[int, ...], weight_dtype: str, read_dtype: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.weight_shape, self.weight_dtype = tuple(weight_shape), weight_dtype
        self.read_dtype = read_dtype

    def build(self, input_shape: Any) -> None:
        self.weight = self.add_weight(
            shape=self.weight_shape, dtype=self.weight_dtype, initializer="zeros", autocast=False
        )

    def call(self, inputs: Any) -> Any:
        return ops.cast(self.weight, self.read_dtype)

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        return keras.KerasTensor(self.weight_shape, self.read_dtype)

    def get_config(self) -> dict[str, Any]:
        arguments = ("weight_shape", "weight_dtype", "read_dtype")
        return {**super().get_config(), **{name: getattr(self, name) for name in arguments}}


def make_portable(model: keras.Model, signature: Signature, example: Any) -> keras.Model:
    """Returns a Functional model of the operations of a model in inference, with its weights.

    Its inputs and outputs are lists, and have the names of the signature. The model is traced on
    the example inputs, which have known shapes. Layers that can't be traced stay in the new model.

    Raises:
        ExportError: The model can't be traced, or not with a size that the signature leaves open.
    """
    is_optimized = isinstance(model, OptimizedModel)
    original = model.original if is_optimized else model
    passes = (model.passes or ()) if is_optimized else ()
    try:
        # Layers of any code are opened: the export is compared with the model.
        with lock_of(original).exclusive():
            plan = Plan(original, example, training=False, passes=passes, opens_foreign=True)
    except CannotOpenError as error:
        raise ExportError(f"it can't be traced: it {error}") from error
    shapes: list[Any] = [spec.shape for spec in signature.inputs]
    if not plan.fits(shapes):
        raise ExportError(f"its layers fix a size that its inputs leave open{plan.reason}")
    graph = plan.program.graph
    inputs = [
        keras.Input(batch_shape=spec.shape, dtype=spec.dtype, name=spec.name)
        for spec in signature.inputs
    ]
    values = dict(zip(map(Value, graph.inputs), inputs, strict=True))
    for node in graph.nodes():
        if node.kind == INPUT:
            continue
        if node.kind == CONSTANT:
            values[Value(node)] = node.content
            continue
        outputs = _weight(node, inputs[0]) if node.kind == WEIGHT else _apply(node, values)
        for index, output in enumerate(tree.flatten(outputs)):
            values[Value(node, index)] = output
    outputs = [
        # The layer would cast another float.
        keras.layers.Identity(name=spec.name, dtype=spec.dtype if "float" in spec.dtype else None)(
            values[value]
        )
        for spec, value in zip(signature.outputs, graph.outputs, strict=True)
    ]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs, name=model.name)


def _weight(node: Node, any_input: Any) -> Any:
    variable = node.content
    dtype = keras.backend.standardize_dtype(variable.dtype)
    layer = HeldWeight(tuple(variable.shape), dtype, node.spec.dtype)
    symbol = layer(any_input)
    layer.weight.assign(variable.value)
    return symbol


def _apply(node: Node, values: dict[Value, Any]) -> Any:
    """Calls the operation of a node on symbols. The user's operations get no new nodes."""
    args, kwargs = node.map_values(values.__getitem__)
    if node.is_layer:
        return node.operation(*args, **kwargs)
    config = copy.deepcopy(node.operation.get_config())
    config.pop("name", None)
    return type(node.operation).from_config(config)(*args, **kwargs)
