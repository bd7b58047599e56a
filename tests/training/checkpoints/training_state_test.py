import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.packed_state import pack_state, unpack_state
from keras_deepseek.backend.checkpoint_weights import write_weights
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.checkpoints.training_state import read_variables, write_variables

GROUPS = ("model", "optimizer", "metrics")
X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def build(units=4, optimizer=None, dtype=None):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(units, dtype=dtype),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    optimizer = optimizer or keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.1, use_ema=True, gradient_accumulation_steps=2)
    )
    model.compile(optimizer, "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    return model


def trained(**arguments):
    model = build(**arguments)
    model.fit(X, X[:, :1], batch_size=3, verbose=0)
    return model


def values(model):
    groups = (model.variables, model.optimizer.variables, model.metrics_variables)
    return [keras.ops.convert_to_numpy(v.value).copy() for group in groups for v in group]


def test_all_that_a_step_changes_is_restored():
    first, second = trained(), build()
    second.evaluate(X, X[:, :1], verbose=0)  # Makes the metrics' variables.
    old_values = values(second)
    packed, arrays = pack_state(read_variables(first))
    write_variables(second, unpack_state(packed, arrays))
    expected = values(first)
    assert any(not np.array_equal(*pair) for pair in zip(old_values, expected, strict=True))
    for received, value in zip(values(second), expected, strict=True):
        np.testing.assert_array_equal(received, value)
    names = [name for group in GROUPS for name in read_variables(first)[group]["names"]]
    for part in ("seed_generator_state", "moving_mean", "accumulator", "iteration", "scale"):
        assert any(part in name for name in names), (part, names)


def test_the_values_are_copies():
    model = trained(optimizer=keras.optimizers.SGD(0.1))
    state = read_variables(model)
    old_values = [value.copy() for name in GROUPS for value in state[name]["values"]]
    model.fit(X, X[:, :1], batch_size=3, verbose=0)
    after = [value for name in GROUPS for value in state[name]["values"]]
    for received, value in zip(after, old_values, strict=True):
        np.testing.assert_array_equal(received, value)


def test_half_precision_variables_come_back_to_the_bit():
    first, second = (
        trained(dtype="bfloat16", optimizer=keras.optimizers.SGD(0.1)) for _ in range(2)
    )
    packed, arrays = pack_state(read_variables(first))
    write_variables(second, unpack_state(packed, arrays))
    np.testing.assert_array_equal(values(second)[0], values(first)[0])


def test_the_weights_alone_leave_the_optimizer_as_it_is():
    first, second = trained(), build()
    write_weights(second, read_variables(first))
    np.testing.assert_array_equal(second.get_weights()[0], first.get_weights()[0])
    assert int(second.optimizer.iterations) == 0


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"units": 5}, r"is float32 \(3, 5\); the checkpoint has '[\w/]*kernel' there, float32"),
        ({"dtype": "bfloat16"}, r"is bfloat16 .* the checkpoint has .* float32"),
        ({"optimizer": keras.optimizers.SGD()}, "with the optimizer Adam, and the model has SGD"),
        (
            {"optimizer": keras.optimizers.Adam()},
            r"and this training has \d+; only the checkpoint has .+, .+ and \d+ more",
        ),
    ],
)
def test_another_model_is_refused_before_any_is_changed(other, match):
    state = read_variables(build())
    model = build(**other)
    old_values = values(model)
    with pytest.raises(InvalidInputError, match=match):
        write_variables(model, state)
    for received, value in zip(values(model), old_values, strict=True):
        np.testing.assert_array_equal(received, value)
