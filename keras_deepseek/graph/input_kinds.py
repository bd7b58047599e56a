"""The kinds of inputs of a model. Inputs of one kind may share a program."""

import functools
import operator
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import tree

from keras_deepseek.backend.keras_private.layer_precision import PolicyKey
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.graph.ir import Shape
from keras_deepseek.graph.known_code import CannotOpenError, CodeState, find_foreign_code

_SETTINGS = (bool, int, float, str, types.FunctionType, types.NoneType)
_NO_SETTINGS = {"_called", "built", "training", "call", "stop_training", "stop_evaluating"}
"""Attributes that Keras itself changes from call to call."""

_read_trainable = operator.attrgetter("trainable")
_dtype_name = functools.cache(keras.backend.standardize_dtype)


class InputKey(NamedTuple):
    """The properties of a call's inputs, and of the layers, that a program depends on.

    Args:
        trainable: The `trainable` flag of each layer in training; `False` in inference.
        settings: The numbers, texts and functions among the layers' attributes, and the state of
            the names that code of users reads.
        policies: The layers' dtype policies.
        structure: The nesting and the dtypes of the inputs.
        shapes: The shapes of the inputs, with `None` for unknown sizes.
        classes: The classes of the input tensors.
    """

    trainable: Any
    settings: Any
    policies: PolicyKey
    structure: Any
    shapes: tuple[Shape, ...]
    classes: tuple[type, ...]

    @property
    def kind(self) -> tuple[Any, ...]:
        """All but shapes and classes."""
        return self[:4]


class InputKinds:
    """Makes the keys of a model's inputs.

    Args:
        example: Example inputs, as `KerasTensor`s. Their sizes stand for unknown ones.
    """

    def __init__(self, model: keras.Model, example: Any) -> None:
        layers = flatten_layers(model)
        self._layers = [layer for layer in layers if layer.variables]
        self._settings = [
            (layer, _settings_getter(layer))
            for layer in layers  # A model has attributes of its training.
            if not isinstance(layer, keras.Model) and not find_foreign_code(layer)
        ]
        self._code = CodeState(layers)
        self._example_shapes = [tuple(symbol.shape) for symbol in tree.flatten(example)]

    def key(self, inputs: Any, tensors: Sequence[Any], training: bool) -> InputKey:
        """Returns the key of inputs; `tensors` are the same as a list."""
        # In training, a frozen BatchNormalization computes something else.
        trainable = training and tuple(map(_read_trainable, self._layers))
        # A callback may change an attribute of a layer, such as `negative_slope`, or its `call`.
        settings = tuple(
            ["call" in vars(layer) for layer, _ in self._settings]
            + [read(layer) for layer, read in self._settings]
            + [self._code.number()]
        )
        # Symbolic sizes, as in `torch.export`, are unknown ones.
        shapes: list[Any] = [
            tuple([size if type(size) is int else None for size in tensor.shape])
            for tensor in tensors
        ]
        return InputKey(
            trainable,
            settings,
            PolicyKey(self._layers),
            _structure(inputs),
            tuple(shapes),
            tuple(map(type, tensors)),
        )

    def fill_unknown_sizes(self, shapes: Sequence[Shape]) -> Sequence[Shape]:
        """Returns shapes with the sizes of the example inputs in place of unknown sizes."""
        if list(map(len, self._example_shapes)) == list(map(len, shapes)):
            shapes = [
                tuple(
                    example_size if size is None else size
                    for size, example_size in zip(*shape_pair, strict=True)
                )
                for shape_pair in zip(shapes, self._example_shapes, strict=True)
            ]
        if any(None in shape for shape in shapes):
            raise CannotOpenError("gets inputs of an unknown size")
        return shapes


def _settings_getter(layer: keras.Layer) -> Callable[[keras.Layer], Any]:
    names = [
        name
        for name, value in vars(layer).items()
        if isinstance(value, _SETTINGS) and name not in _NO_SETTINGS
    ]
    return operator.attrgetter(*names, "name")


def _structure(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return tuple((name, _structure(inputs[name])) for name in sorted(inputs))
    if isinstance(inputs, list | tuple):
        return type(inputs), *map(_structure, inputs)
    return _dtype_name(inputs.dtype)
