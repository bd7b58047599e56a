"""Optimizers that a model holds beside the one that it was compiled with, as a GAN does.

Its own `train_step` applies them, and a checkpoint holds their variables.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.optimizers import optimized_variables
from keras_deepseek.errors import InvalidInputError

_FOREIGN = -1
"""The position of a variable that is none of the model's."""


def find_own_optimizers(model: keras.Model) -> dict[str, keras.optimizers.Optimizer]:
    """Returns the optimizers in attributes of a model and its layers, by attribute.

    Args:
        model: `keras.Model`, compiled. The optimizer that it was compiled with is left out.
    """
    seen = {id(model.optimizer), id(getattr(model.optimizer, "inner_optimizer", None))}
    found = {}
    for layer in flatten_layers(model):
        owner = "" if layer is model else f"{layer.path}."
        for attribute, value in vars(layer).items():
            if attribute.startswith("_self_"):  # TensorFlow's own list of attributes.
                continue
            for place, optimizer in _optimizers_in(value):
                if id(optimizer) not in seen:
                    seen.add(id(optimizer))
                    found[f"{owner}{attribute}{place}"] = optimizer
    return found


def positions_of_trained(model: keras.Model) -> dict[str, list[int] | None]:
    """Returns which of a model's variables each of its own optimizers was built for.

    Args:
        model: `keras.Model`, compiled.

    Returns:
        A dict of positions in `model.variables` by attribute, `None` of an optimizer that is not
        built yet.
    """
    positions = {id(variable): position for position, variable in enumerate(model.variables)}
    trained = {name: optimized_variables(each) for name, each in find_own_optimizers(model).items()}
    return {
        name: None if variables is None else [positions.get(id(v), _FOREIGN) for v in variables]
        for name, variables in trained.items()
    }


def build_own_optimizers(model: keras.Model, trained: Mapping[str, list[int] | None]) -> None:
    """Builds a model's own optimizers for the variables that they trained in a checkpoint.

    Args:
        model: `keras.Model`, built and compiled.
        trained: dict. What `positions_of_trained` returned.

    Raises:
        InvalidInputError: The model holds other optimizers, or one trains variables that are not
            the model's, and must be built before.
    """
    found = find_own_optimizers(model)
    if list(found) != list(trained):
        raise InvalidInputError(
            f"The checkpoint holds the optimizers {list(trained)} beside the one of compile(), and "
            f"model {model.name!r} has {list(found)}. Build and compile the model as it was."
        )
    for name, optimizer in found.items():
        positions = trained[name]
        if optimizer.built or positions is None:
            continue
        if _FOREIGN in positions:
            raise InvalidInputError(
                f"The optimizer {name!r} trains variables that are not those of model "
                f"{model.name!r}: call its build(variables) before the training is resumed."
            )
        optimizer.build([model.variables[position] for position in positions])


def _optimizers_in(value: Any, place: str = "") -> Iterator[tuple[str, keras.optimizers.Optimizer]]:
    """Yields the optimizers of a value, also in lists and dicts, with where they stand in it."""
    if isinstance(value, keras.optimizers.Optimizer):
        yield place, value
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _optimizers_in(each, f"{place}[{index}]")
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _optimizers_in(each, f"{place}[{key!r}]")
