import keras
import numpy as np
import pytest

from keras_deepseek.deploy.routes.config_check import check_configs
from keras_deepseek.errors import ExportError


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.scores = keras.layers.Dense(2)

    def call(self, inputs):
        return self.scores(inputs)


class WithFunction(Own):
    def __init__(self, function, **options):
        super().__init__()
        self.function = function


class Forgetful(Own):
    def __init__(self, units, **options):
        super().__init__()

    def get_config(self):
        return {"name": self.name}


class WithDefault(Own):
    def __init__(self, units=3, **options):
        super(Own, self).__init__(**options)
        self.units = units
        self.scores = keras.layers.Dense(units)

    def get_config(self):
        return {"name": self.name}


class Failing(Own):
    def get_config(self):
        return {"width": self.width}


class Block(keras.layers.Layer):
    def __init__(self, size):
        super().__init__()
        self.inner = keras.layers.Dense(size)

    def call(self, inputs):
        return self.inner(inputs)


class Whole(Own):
    """Makes its `Block` itself, so that nobody has to know how."""

    def __init__(self, **options):
        super(Own, self).__init__(**options)
        self.scores = Block(3)


def graph_of(layer):
    inputs = keras.Input((3,))
    inner = keras.Model(inputs, layer(inputs))
    outer = keras.Input((3,))
    return keras.Model(outer, inner(outer))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (Own, r"__init__ of class Own does not take .*'trainable'.*Write `def __init__\(self, .*"),
        (lambda: WithFunction(lambda x: x), r"WithFunction has no get_config.*\(function\)"),
        (lambda: Forgetful(3), "get_config.. of class Forgetful leaves out 'units'"),
        (lambda: WithDefault(5), "get_config.. of class WithDefault leaves out 'units'"),
        (Failing, "get_config.. of class Failing raises AttributeError: .*width"),
        (lambda: graph_of(Block(4)), "__init__ of class Block does not take"),
    ],
)
def test_it_is_said_what_to_change_in_a_class(make, match):
    model = make()
    model(np.ones((1, 3), "float32"))
    with pytest.raises(ExportError, match=match):
        check_configs(model)


@pytest.mark.parametrize("make", [Whole, WithDefault, lambda: graph_of(keras.layers.Dense(2))])
def test_what_can_be_made_again_passes(make):
    model = make()
    model(np.ones((1, 3), "float32"))
    check_configs(model)
