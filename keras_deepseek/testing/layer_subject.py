"""The layer under test in `LayerTestCase`, and layers that attach or record a mask."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.export.named_model import NamedModel

SEED = 1337


class AttachMask(keras.Layer):
    """A layer that returns its input with a given mask attached, like `Masking`.

    Args:
        mask: Boolean array.
    """

    def __init__(self, mask: Array) -> None:
        super().__init__()
        self.given_mask = mask

    def call(self, inputs: Any) -> Any:
        return inputs

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return keras.ops.convert_to_tensor(self.given_mask)


class RecordMask(keras.Layer):
    """A layer that returns its input, and stores the input's mask in `mask`."""

    def __init__(self) -> None:
        super().__init__()
        self.supports_masking = True
        self.mask: Array | None = None

    def call(self, inputs: Any, mask: Any = None) -> Any:
        self.mask = None if mask is None else keras.ops.convert_to_numpy(mask)
        return inputs


@dataclass(frozen=True)
class LayerSubject:
    """A layer class with its arguments and one batch of inputs.

    Args:
        layer_class: The class.
        init_kwargs: Its arguments.
        inputs: NumPy arrays: one, a list that `call` takes as one argument, or a dict of arguments.
    """

    layer_class: type[keras.Layer]
    init_kwargs: Mapping[str, Any]
    inputs: Any

    @classmethod
    def from_shapes(
        cls,
        layer_class: type[keras.Layer],
        init_kwargs: Mapping[str, Any],
        input_shape: Any,
        input_dtype: Any,
    ) -> "LayerSubject":
        """Makes a subject with random inputs: normal floats, or integers or booleans of 0 and 1."""
        rng = np.random.default_rng(SEED)
        if isinstance(input_shape, dict):
            dtypes = _as_dict(input_dtype, list(input_shape))
            inputs: Any = {
                name: _draw(shape, dtypes[name], rng) for name, shape in input_shape.items()
            }
        elif isinstance(input_shape, list):
            dtypes = _as_dict(input_dtype, list(range(len(input_shape))))
            inputs = [_draw(shape, dtypes[i], rng) for i, shape in enumerate(input_shape)]
        else:
            inputs = _draw(input_shape, input_dtype, rng)
        return cls(layer_class, dict(init_kwargs), inputs)

    def make_layer(self, **kwargs: Any) -> keras.Layer:
        """Creates and builds the layer, with random noise added to its trainable weights.

        The noise shows mistakes that weights of zeros and ones hide.
        """
        keras.utils.set_random_seed(SEED)
        layer = self.layer_class(**{**self.init_kwargs, **kwargs})
        self.call(layer, self.symbolic_inputs())
        rng = np.random.default_rng(SEED)
        for weight in layer.trainable_weights:
            noise = 0.1 * rng.normal(size=weight.shape)
            weight.assign(keras.ops.convert_to_numpy(weight) + noise)
        return layer

    def call(self, layer: keras.Layer, inputs: Any) -> Any:
        """Calls the layer for inference, as users do."""
        if isinstance(inputs, dict):
            return layer(**inputs, training=False)
        return layer(inputs, training=False)

    def call_once(self, layer: keras.Layer, inputs: Any) -> Any:
        """Calls the layer on arrays of a shape that no other check uses.

        The call is compiled as a whole on JAX, which would compile each of its operations.
        """

        def call_flat(*tensors: Any) -> Any:
            return self.call(layer, keras.tree.pack_sequence_as(inputs, tensors))

        compute = backend.current().compute.compile_for_one_call(call_flat)
        return compute(*keras.tree.flatten(to_tensors(inputs)))

    def symbolic_inputs(self) -> Any:
        """Returns a symbolic `Input` of any batch size for each input array."""
        if isinstance(self.inputs, dict):
            return {name: _make_input(array, name) for name, array in self.inputs.items()}
        return keras.tree.map_structure(_make_input, self.inputs)

    def small_inputs(self, layer: keras.Layer) -> dict[str, Any]:
        """Returns edge-case inputs by description: an empty batch, and sequences of length one.

        The first input is a sequence if it has the shape `(batch_size, length, dim)`, or holds
        integers of shape `(batch_size, length)`, unless the layer's `input_spec` fixes the second
        axis. Integers are zeros, which are valid indices into any sequence.
        """
        first = self.first_input
        small = {"an empty batch": self._cut(lambda array: array[:0])}
        if first.ndim == 2 + is_float(first) and not _fixes_length(layer, first.ndim):
            length = first.shape[1]
            small["a sequence of one"] = self._cut(
                lambda array: array[:, :1] if array.shape[1:2] == (length,) else array
            )
        return small

    def _cut(self, cut: Callable[[Array], Array]) -> Any:
        """Returns the inputs after `cut`, with zeros in place of integers."""
        return keras.tree.map_structure(
            lambda array: cut(array if is_float(array) else np.zeros_like(array)), self.inputs
        )

    @property
    def first_input(self) -> Array:
        """The input whose mask the layer passes on: its first argument, or the first of a list."""
        first: Array = self.inputs
        if isinstance(self.inputs, dict):
            first = next(iter(self.inputs.values()))
        elif isinstance(self.inputs, list):
            first = self.inputs[0]
        return first

    def replace_first_input(self, tensor: Any) -> Any:
        """Returns the inputs as tensors, with the first input replaced."""
        first = self.first_input
        return keras.tree.map_structure(
            lambda array: tensor if array is first else to_tensors(array), self.inputs
        )

    def make_objective(
        self, layer: keras.Layer, compute: Callable[[Any], Any]
    ) -> Callable[[Sequence[Any]], list[Any]]:
        """Returns a function of the float inputs: the outputs multiplied by random weights.

        `compute` maps all inputs to the outputs: the layer itself, or its compiled form.
        """
        rng = np.random.default_rng(SEED)
        weights = [
            (rng.normal(size=array.shape) * is_float(array)).astype("float32")
            for array in to_arrays(self.call(layer, to_tensors(self.inputs)))
        ]

        def weigh_outputs(float_inputs: Sequence[Any]) -> list[Any]:
            float_arrays = iter(float_inputs)
            arrays = keras.tree.flatten(self.inputs)
            inputs = keras.tree.pack_sequence_as(
                self.inputs, [next(float_arrays) if is_float(array) else array for array in arrays]
            )
            return [
                keras.ops.multiply(keras.ops.cast(output, "float32"), weight)
                for output, weight in zip(keras.tree.flatten(compute(inputs)), weights, strict=True)
            ]

        return weigh_outputs

    def compile(self, layer: keras.Layer) -> Callable[[Any], list[Array]]:
        """Compiles the layer to a function from inputs to a flat list of outputs.

        It takes any batch size, and reads the weights at each call.
        """
        model = NamedModel(self.make_model(layer))
        infer = backend.current().inference.compile_inference(model)
        names = [spec.name for spec in model.signature.inputs]

        def compute(inputs: Any) -> list[Array]:
            outputs = infer(dict(zip(names, keras.tree.flatten(inputs), strict=True)))
            return [outputs[spec.name] for spec in model.signature.outputs]

        return compute

    def make_model(self, layer: keras.Layer) -> keras.Model:
        """Returns a Functional model of only this layer, with a flat list of outputs."""
        inputs = self.symbolic_inputs()
        outputs = keras.tree.flatten(self.call(layer, inputs))
        return keras.Model(inputs, outputs)


def to_tensors(structure: Any) -> Any:
    """Converts a nested structure of NumPy arrays to the backend's tensors."""
    return keras.tree.map_structure(keras.ops.convert_to_tensor, structure)


def to_arrays(structure: Any) -> list[Array]:
    """Converts a nested structure of tensors to a flat list of NumPy arrays."""
    return [keras.ops.convert_to_numpy(tensor) for tensor in keras.tree.flatten(structure)]


def is_float(tensor: Any) -> bool:
    """Returns true if a tensor or array has a floating-point dtype, bfloat16 included."""
    return "float" in keras.backend.standardize_dtype(tensor.dtype)


def _fixes_length(layer: keras.Layer, rank: int) -> bool:
    """Returns True if the layer's `input_spec` fixes the second axis of its first input."""
    specs = keras.tree.flatten(layer.input_spec)
    axes = (specs[0].axes or {}) if specs and specs[0] is not None else {}
    return any(axis % rank == 1 and size is not None for axis, size in axes.items())


def _make_input(array: Array, name: str | None = None) -> Any:
    return keras.Input(array.shape[1:], dtype=array.dtype.name, name=name)


def _as_dict(value: Any, keys: list[Any]) -> dict[Any, Any]:
    """Returns a dict with a value for each key, from a dict, a list, or one value for all."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list):
        return dict(zip(keys, value, strict=True))
    return dict.fromkeys(keys, value)


def _draw(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> Array:
    if "float" in dtype:
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, 2, size=shape).astype(dtype)
