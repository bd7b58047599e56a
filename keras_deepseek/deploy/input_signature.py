"""Wrapping of a subclassed model as a Functional one with given input shapes and dtypes."""

import inspect
from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError


def with_input_signature(model: keras.Model, input_signature: Any) -> keras.Model:
    """Wraps a subclassed model in a Functional model with inputs of given shapes and dtypes.

    The signature has, for each argument of `call`, a structure of `keras.InputSpec` or of other
    objects with a shape and a dtype. A size of `None` is free, and a dtype of `None` is float32.
    """
    if not isinstance(model, keras.Model):
        raise InvalidInputError(f"Expected a keras.Model, received {type(model).__name__}.")
    if isinstance(model, keras.Sequential) or hasattr(model, "output_names"):
        raise InvalidInputError(
            f"`input_signature` is for subclassed models. The inputs of {model.name!r} are defined "
            "by its `Input`: set free sizes there, as in keras.Input((None,))."
        )
    if not isinstance(input_signature, list | tuple) or not input_signature:
        raise InvalidInputError(
            "`input_signature` must be a list with a keras.InputSpec for each argument of `call`, "
            'as in [keras.InputSpec(shape=(None, None), dtype="int32")]; received '
            f"{input_signature!r}."
        )
    names = [*inspect.signature(model.call).parameters]
    arguments = [
        _make_inputs(spec, names[index] if index < len(names) else None)
        for index, spec in enumerate(input_signature)
    ]
    try:
        outputs = model(*arguments)
    except Exception as error:
        raise InvalidInputError(
            f"Model {model.name!r} does not take what `input_signature` describes: {error}"
        ) from error
    inputs = arguments[0] if len(arguments) == 1 else arguments
    return keras.Model(inputs, outputs, name=model.name)


def _make_inputs(structure: Any, name: str | None) -> Any:
    """Makes the `Input`s for nested input specs; a single one is named after its argument."""
    if isinstance(structure, dict):
        return {key: _make_inputs(spec, str(key)) for key, spec in structure.items()}
    if isinstance(structure, list | tuple):
        return [_make_inputs(spec, None) for spec in structure]
    shape, given_name = (getattr(structure, attribute, None) for attribute in ("shape", "name"))
    if shape is None:
        raise InvalidInputError(
            "`input_signature` must hold keras.InputSpec objects with a shape, as in "
            f'keras.InputSpec(shape=(None, 80), dtype="float32"); received {structure!r}.'
        )
    dtype = keras.backend.standardize_dtype(getattr(structure, "dtype", None) or "float32")
    return keras.Input(batch_shape=tuple(shape), dtype=dtype, name=given_name or name)
