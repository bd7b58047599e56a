"""Which layers hold which, by private names of Keras with a canary test each."""

import keras
from keras.src.models.functional import Functional


def inner_layers(layer: keras.Layer) -> list[keras.Layer]:
    """Returns the layers that a layer holds itself, not those inside of these."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Returns the variables of a layer, such as weights and seeds, without those of inner ones."""
    inner = {id(each) for held in inner_layers(layer) for each in held.variables}
    return [variable for variable in layer.variables if id(variable) not in inner]


def is_container(layer: keras.Layer) -> bool:
    """Whether a layer does no more with the outputs of its layers than to hand them on.

    So do functional models and `Sequential`s, if their class has no `call` of its own.
    """
    return type(layer).call in (keras.Sequential.call, Functional.call)
