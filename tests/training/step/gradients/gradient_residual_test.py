import keras
import numpy as np
import pytest

from keras_deepseek.backend.processes.gradient_compression import LowRank
from keras_deepseek.backend.processes.processes import OneProcess, SingleReplica
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer
from keras_deepseek.training.step.gradients.gradient_residual import GradientResidual


class Pair(SingleReplica, OneProcess):
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


def test_the_variable_has_the_size_of_all_gradients():
    trained = weights()
    residual = GradientResidual("bfloat16", Pair(), Pair())
    residual.prepare(trained)
    (variable,) = residual.variables
    assert (tuple(variable.shape), variable.dtype, variable.trainable) == ((11,), "float32", False)
    variable.assign(np.arange(11.0))
    residual.prepare(trained)
    assert residual.variables[0] is variable
    residual.prepare(trained[:1])
    np.testing.assert_array_equal(read(residual), np.zeros(6))
    compression = residual.compression(2.0)
    assert (compression.kind, compression.residual, compression.scale) == (
        "bfloat16",
        residual.variables[0],
        2.0,
    )


def test_each_rank_restores_its_own_residual():
    trained = weights()
    residual = GradientResidual("float16", Pair(), Pair())
    residual.prepare(trained)
    residual.variables[0].assign(np.arange(11.0))
    state = residual.read()
    other = GradientResidual("bfloat16", Pair(), Pair())
    other.write(trained, state)
    np.testing.assert_array_equal(read(other), 2.0 * np.arange(11.0))
    assert other.compression(1.0).kind == "bfloat16"  # As it was asked for.


@pytest.mark.parametrize(
    "state",
    [
        None,
        {"values": [[np.ones(11, "float32")]]},
        {"values": [[np.ones(11, "float32")] * 3]},
        {"values": [[np.ones(5, "float32")] * 2]},
    ],
    ids=["none before", "one process", "three processes", "other weights"],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_residual_that_does_not_fit_starts_at_zero(rank, state, caplog):
    pair = Pair()
    pair.rank = rank
    pair.gather = lambda array: [array, array]
    residual = GradientResidual("bfloat16", pair, pair)
    trained = weights()
    residual.prepare(trained)
    for _ in range(2):
        residual.variables[0].assign(np.arange(11.0))
        residual.write(trained, state)
        np.testing.assert_array_equal(read(residual), np.zeros(11))
    assert caplog.text.count("starts at zero") == (1 if rank == 0 else 0)


def test_compression_is_refused_with_one_process():
    def make(kind, **options):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        return Trainer(model, optimizer="sgd", loss="mse", gradient_compression=kind, **options)

    make(None)
    with pytest.raises(InvalidInputError, match="only one process trains"):
        make("bfloat16")
    with pytest.raises(InvalidInputError, match="a LowRank; received 'bfloat'"):
        make("bfloat")
    with pytest.raises(InvalidInputError, match="`rank` must be a positive integer"):
        LowRank(0)


def test_low_rank_starts_with_random_factors():
    trained = [keras.Variable(np.ones((8, 40), "float32")), *weights()]
    residual = GradientResidual(LowRank(1), Pair(), Pair())
    residual.prepare(trained)
    begun = read(residual)
    assert begun.shape == (320 + 11 + 40,)
    np.testing.assert_array_equal(begun[:331], 0.0)
    np.testing.assert_allclose(np.linalg.norm(begun[331:]), 1.0, rtol=1e-6)
    residual.write(trained, None)
    np.testing.assert_array_equal(read(residual), begun)
