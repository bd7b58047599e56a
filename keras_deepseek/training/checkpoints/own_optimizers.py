"""Optimizers that a model holds in attributes, beside the one of `compile`, as a GAN does.

The model's own `train_step` applies them, and a checkpoint holds their variables.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.optimizers import optimized_variables
from keras_deepseek.errors import InvalidInputError

_NOT_IN_MODEL = -1
"""The position of a variable that is not in `model.variables`."""


def find_own_optimizers(model: keras.Model) -> dict[str, keras.optimizers.Optimizer]:
    """Finds the optimizers in attributes of a model and its layers, by attribute.

    The optimizer that the model was compiled with is left out.
    """
    listed_ids = {id(model.optimizer), id(getattr(model.optimizer, "inner_optimizer", None))}
    optimizers = {}
    for layer in flatten_layers(model):
        owner = "" if layer is model else f"{layer.path}."
        for attribute, value in vars(layer).items():
            if attribute.startswith("_self_"):  # TensorFlow's own list of attributes.
                continue
            for path, optimizer in _optimizers_in(value):
                if id(optimizer) not in listed_ids:
                    listed_ids.add(id(optimizer))
                    optimizers[f"{owner}{attribute}{path}"] = optimizer
    return optimizers


def trained_positions(model: keras.Model) -> dict[str, list[int] | None]:
    """Returns, for each optimizer, the positions in `model.variables` of its variables.

    The result is by attribute, and `None` for an optimizer that is not built yet.
    """
    positions = {id(variable): position for position, variable in enumerate(model.variables)}
    trained: dict[str, list[int] | None] = {}
    for name, optimizer in find_own_optimizers(model).items():
        variables = optimized_variables(optimizer)
        trained[name] = (
            None
            if variables is None
            else [positions.get(id(variable), _NOT_IN_MODEL) for variable in variables]
        )
    return trained


def build_own_optimizers(model: keras.Model, trained: Mapping[str, list[int] | None]) -> None:
    """Builds a model's own optimizers for the variables that they had in the checkpoint.

    `trained` is the result of `trained_positions` in the checkpoint.
    """
    optimizers = find_own_optimizers(model)
    if list(optimizers) != list(trained):
        raise InvalidInputError(
            f"The checkpoint holds the optimizers {list(trained)} beside the one of compile(), and "
            f"model {model.name!r} has {list(optimizers)}. Build and compile the model as before."
        )
    for name, optimizer in optimizers.items():
        positions = trained[name]
        if optimizer.built or positions is None:
            continue
        if _NOT_IN_MODEL in positions:
            raise InvalidInputError(
                f"The optimizer {name!r} trains variables that are not in model {model.name!r}: "
                "call its build(variables) before you resume the training."
            )
        optimizer.build([model.variables[position] for position in positions])


def _optimizers_in(value: Any, path: str = "") -> Iterator[tuple[str, keras.optimizers.Optimizer]]:
    """Yields the optimizers in a nested value, with their places in its lists and dicts."""
    if isinstance(value, keras.optimizers.Optimizer):
        yield path, value
    elif isinstance(value, list | tuple):
        for index, nested in enumerate(value):
            yield from _optimizers_in(nested, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, nested in value.items():
            yield from _optimizers_in(nested, f"{path}[{key!r}]")
