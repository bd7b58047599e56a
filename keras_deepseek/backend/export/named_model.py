"""A wrapper of a Keras model that takes and returns tensors by name.

Keras models take and return nested structures. Artifacts and requests use names. `NamedModel` is
the one place that maps between them, for inference, export and verification.
"""

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import keras

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend.keras_private.fixes import fixed_resize, fixed_time_distributed
from keras_deepseek.backend.keras_private.layer_precision import (
    find_exact_inputs,
    layers_to_switch,
    temporary_policy,
)
from keras_deepseek.backend.keras_private.layers import (
    first_call_shapes,
    functional_graph,
    producing_operation,
    without_new_nodes,
)
from keras_deepseek.backend.keras_private.sample_ranges import vocabulary_sizes
from keras_deepseek.errors import InvalidInputError, NotSupportedError


class NamedModel:
    """A built model as a function from tensors by name to tensors by name.

    A name is the key in a dict of inputs or outputs; else the name that the user gave to the
    `Input` or to the output layer; else `input_0`, `output_0` and so on. Names that Keras counted
    up (`dense_7`) are not used, since they differ between processes. Nor is the name of an output
    layer that equals an input's.

    With `precision` `"float16"` or `"bfloat16"`, layers compute in it as under Keras's mixed
    policies, and inputs and outputs keep their dtype.
    """

    def __init__(self, model: keras.Model, precision: str | None = None) -> None:
        if not isinstance(model, keras.Model):
            raise InvalidInputError(
                f"Expected a keras.Model, received {type(model).__name__}: {model!r}."
            )
        self.model = model
        self.precision = precision
        described = model.original if isinstance(model, ModelWrapper) else model
        inputs = _symbolic_inputs(described)
        outputs = _symbolic_outputs(described, inputs)
        makers = map(producing_operation, keras.tree.flatten(outputs))
        # An inverted lookup returns strings, although its outputs are declared as integers.
        lookups = (maker for maker in makers if isinstance(maker, keras.layers.StringLookup))
        _refuse_strings(lookup.name for lookup in lookups if lookup.invert)
        self._input_names = _name_structure(inputs, "input", _given_input_name)
        namer = _output_namer(
            described, outputs, reserved_names=set(keras.tree.flatten(self._input_names))
        )
        self._output_names = _name_structure(outputs, "output", namer)
        self.signature = Signature(
            inputs=_with_vocabularies(described, _specs(self._input_names, inputs)),
            outputs=_specs(self._output_names, outputs),
        )

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the model in inference mode on the backend's tensors by name."""
        packed = self.pack_inputs(inputs)
        with self.temporary_precision():
            outputs = self.name_outputs(self.model(packed, training=False))
        if self.precision is None:
            return outputs
        return {
            spec.name: keras.ops.cast(outputs[spec.name], spec.dtype)
            for spec in self.signature.outputs
        }

    def trace(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the model on symbolic tensors by name, whose sizes may be free. See `__call__`."""
        with fixed_time_distributed(), fixed_resize():
            return self(inputs)

    def temporary_precision(self) -> AbstractContextManager[None]:
        """Returns a context manager in which the layers compute in the precision."""
        if self.precision is None:
            return nullcontext()
        policy = keras.DTypePolicy(f"mixed_{self.precision}")
        layers, exact_inputs = layers_to_switch(self.model), find_exact_inputs(self.model)
        return temporary_policy(
            layers, policy, exact_inputs=exact_inputs, casts_embedding_tables=True
        )

    def in_precision(self, precision: str | None) -> "NamedModel":
        """Returns the same model, which computes in another precision."""
        same = copy.copy(self)  # Finding the names again would call a subclassed model.
        same.precision = precision
        return same

    def pack_inputs(self, inputs: Mapping[str, Any]) -> Any:
        """Packs tensors by name into the nested structure that the Keras model takes."""
        return keras.tree.map_structure(lambda name: inputs[name], self._input_names)

    def name_outputs(self, outputs: Any) -> dict[str, Any]:
        """Converts the nested outputs of the Keras model to a dict of tensors by name."""
        names = keras.tree.flatten(self._output_names)
        return dict(zip(names, keras.tree.flatten(outputs), strict=True))


def _symbolic_inputs(model: keras.Model) -> Any:
    if isinstance(model, keras.Sequential):
        return model.inputs[0] if hasattr(model, "inputs") else _refuse_unbuilt(model)
    functional = getattr(model, "input", None) if hasattr(model, "output_names") else None
    if functional is not None:
        only_one = isinstance(functional, list | tuple) and len(functional) == 1
        return functional[0] if only_one else functional
    shapes = first_call_shapes(model)
    if len(shapes) != 1:
        return _refuse_unbuilt(model)
    (shape,) = shapes.values()
    return keras.tree.map_shape_structure(
        lambda sizes: keras.KerasTensor((None, *sizes[1:]), dtype=model.input_dtype), shape
    )


def _refuse_unbuilt(model: keras.Model) -> Any:
    raise InvalidInputError(
        f"The inputs of model {model.name!r} are unknown: it is not built, or its `call` takes "
        "more than one argument. Give a Sequential model an `Input`, or call a subclassed model "
        "once on one (nested) batch."
    )


def _symbolic_outputs(model: keras.Model, inputs: Any) -> Any:
    if isinstance(model, keras.Sequential):
        return model.outputs[0]
    if hasattr(model, "output_names"):
        return model.output
    try:
        with without_new_nodes(model):
            return model(inputs, training=False)
    except TypeError:  # Its `call` takes more than the first argument.
        return _refuse_unbuilt(model)


def _name_structure(structure: Any, kind: str, given_name: Callable[[Any], str | None]) -> Any:
    """Returns a nested structure with the name of each tensor in its place."""
    tensors = keras.tree.flatten(structure)
    names = [given_name(tensor) or f"{kind}_{index}" for index, tensor in enumerate(tensors)]
    if isinstance(structure, dict) and len(structure) == len(tensors):
        names = list(keras.tree.flatten({key: key for key in structure}))
    if len(set(names)) < len(names):
        names = [f"{kind}_{index}" for index in range(len(tensors))]
    return keras.tree.pack_sequence_as(structure, names)


def _given_input_name(tensor: Any) -> str | None:
    # A model that was loaded again has "input_layer" where the first had "keras_tensor".
    counted_up = re.fullmatch(r"(keras_tensor|input_layer)(_\d+)?", tensor.name)
    return None if counted_up else str(tensor.name)


def _output_namer(
    model: keras.Model, outputs: Any, reserved_names: set[str]
) -> Callable[[Any], str | None]:
    """Returns a function that maps an output tensor to the name that the user gave its layer."""
    if isinstance(model, keras.Sequential):
        names = [model.layers[-1].name]
    else:
        names = getattr(model, "output_names", [])
    layer_names = dict(zip(map(id, keras.tree.flatten(outputs)), names, strict=False))
    # This includes `a + b`, which is no layer.
    operations = getattr(model, "operations", model.layers)
    classes = {operation.name: type(operation).__name__ for operation in operations}

    def given_name(tensor: Any) -> str | None:
        name = layer_names.get(id(tensor))
        counted_up = rf"{_snake_case(classes.get(name, ''))}(_\d+)?" if name else ""
        has_none = name is None or name in reserved_names or re.fullmatch(counted_up, name)
        return None if has_none else name

    return given_name


def _snake_case(name: str) -> str:
    """Converts a class name to snake case, as Keras does for its default layer names."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _specs(names: Any, tensors: Any) -> tuple[TensorSpec, ...]:
    pairs = zip(keras.tree.flatten(names), keras.tree.flatten(tensors), strict=True)
    specs = tuple(
        TensorSpec(name, tuple(tensor.shape), keras.backend.standardize_dtype(tensor.dtype))
        for name, tensor in pairs
    )
    _refuse_strings(spec.name for spec in specs if spec.dtype == "string")
    return specs


def _with_vocabularies(model: keras.Model, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    sizes = vocabulary_sizes(model, len(specs))
    return tuple(
        replace(spec, vocabulary_size=size) for spec, size in zip(specs, sizes, strict=True)
    )


def _refuse_strings(string_names: Iterable[str]) -> None:
    if names := [*string_names]:
        raise NotSupportedError(
            f"Strings can't be exported or served: {names}. Remove the layers that read or return "
            "strings from the model, and let it take and return numbers."
        )


class ModelWrapper(keras.Model):
    """A model with the inputs, the outputs and the names of another, its `original`."""

    original: keras.Model

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the outputs of the original as `KerasTensor`s."""
        return self.original.compute_output_spec(inputs)

    @property
    def input(self) -> Any:
        """The symbolic inputs of the original."""
        return (self._functional or self.original).input

    @property
    def output(self) -> Any:
        """The symbolic outputs of the original."""
        return (self._functional or self.original).output

    @property
    def inputs(self) -> Any:
        """The flat symbolic inputs of the original."""
        return self.original.inputs

    @property
    def outputs(self) -> Any:
        """The flat symbolic outputs of the original."""
        return self.original.outputs

    @property
    def output_names(self) -> Any:
        """The names of the original's outputs."""
        return self.original.output_names

    @property
    def _functional(self) -> Any:  # Keras's name for the graph inside a `Sequential`.
        return functional_graph(self.original)
