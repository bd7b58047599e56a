import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.errors import InvalidInputError, NotSupportedError
from keras_deepseek.backend.processes import OneProcess
from keras_deepseek.training import Trainer
from keras_deepseek.training.gradient_residual import GradientResidual, make_residual


class Pair(OneProcess):
    """One of two processes of which the other knows the same, and twice as much."""

    rank = 1
    world_size = 2

    def gather(self, array):
        return [array, 2.0 * array]


def weights():
    return [keras.Variable(np.ones(shape, "float32")) for shape in ((2, 3), (), (4,))]


def read(residual):
    (variable,) = residual.variables
    return keras.ops.convert_to_numpy(variable.value)


def test_it_is_as_long_as_all_gradients_and_made_anew_for_other_weights():
    trained = weights()
    residual = GradientResidual("bfloat16", Pair())
    residual.prepare(trained)
    (variable,) = residual.variables
    assert (tuple(variable.shape), variable.dtype, variable.trainable) == ((11,), "float32", False)
    variable.assign(np.arange(11.0))
    residual.prepare(trained)
    assert residual.variables[0] is variable
    residual.prepare(trained[:1])
    np.testing.assert_array_equal(read(residual), np.zeros(6))
    rounding = residual.rounding(2.0)
    assert (rounding.dtype, rounding.residual, rounding.scale) == (
        "bfloat16",
        residual.variables[0],
        2.0,
    )


def test_each_rank_gets_back_its_own():
    trained = weights()
    residual = GradientResidual("float16", Pair())
    residual.prepare(trained)
    residual.variables[0].assign(np.arange(11.0))
    state = residual.read()
    other = GradientResidual("bfloat16", Pair())
    other.write(trained, state)
    np.testing.assert_array_equal(read(other), 2.0 * np.arange(11.0))


@pytest.mark.parametrize(
    "state",
    [
        None,
        {"values": [np.ones(11, "float32")]},
        {"values": [np.ones(11, "float32")] * 3},
        {"values": [np.ones(5, "float32")] * 2},
    ],
    ids=["none before", "one process", "three processes", "other weights"],
)
def test_what_does_not_fit_is_forgotten_and_the_log_says_so(state, caplog):
    residual = GradientResidual("bfloat16", Pair())
    trained = weights()
    residual.prepare(trained)
    residual.variables[0].assign(np.arange(11.0))
    residual.write(trained, state)
    np.testing.assert_array_equal(read(residual), np.zeros(11))
    assert "which begins at zero" in caplog.text


def test_it_is_refused_where_nothing_is_sent():
    def make(dtype, **options):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        return Trainer(model, optimizer="sgd", loss="mse", reduction_dtype=dtype, **options)

    make("float32")
    with pytest.raises(InvalidInputError, match="here is one that trains alone"):
        make("bfloat16")
    with pytest.raises(InvalidInputError, match="did you mean 'bfloat16'"):
        make("bfloat")
    with pytest.raises(NotSupportedError, match="its compiler decides where"):
        make_residual("bfloat16", Pair())
