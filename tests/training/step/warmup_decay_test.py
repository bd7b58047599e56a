import math

import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import WarmupDecay

SHAPES = {
    "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
    "linear": lambda p: 1 - p,
    "polynomial": lambda p: (1 - p) ** 3,
    "sqrt": lambda p: 1 - math.sqrt(p),
}


def expected_rate(step, warmup, decay_steps, shape):
    """Returns the rate of a training of 20 steps from 0.1 to 2 to 0.5, in float64."""
    if step < warmup:
        return 0.1 + 1.9 * step / warmup
    start = 20 - (decay_steps or 20 - warmup)
    if step <= start:
        return 2.0
    return 0.5 + 1.5 * SHAPES[shape](min((step - start) / (20 - start), 1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("warmup", "decay_steps"), [(0, None), (4, None), (4, 6), (0, 5), (14, 6)])
def test_each_step_has_the_rate_of_the_formula(shape, warmup, decay_steps):
    schedule = WarmupDecay(
        2.0,
        20,
        warmup_steps=warmup,
        decay_steps=decay_steps,
        decay=shape,
        initial_lr=0.1,
        final_lr=0.5,
        power=3.0,
    )
    rates = [float(schedule(step)) for step in range(25)]
    expected = [expected_rate(step, warmup, decay_steps, shape) for step in range(25)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_the_warm_up_may_last_all_steps():
    schedule = WarmupDecay(1.0, 4, warmup_steps=4, final_lr=1.0)
    assert [float(schedule(step)) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]


def test_fit_uses_the_rate_of_each_step():
    schedule = WarmupDecay(1.0, 8, warmup_steps=3, decay="linear", initial_lr=0.25)
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
    )
    model.compile(keras.optimizers.SGD(schedule), loss=lambda y, y_pred: keras.ops.mean(y_pred))
    model.fit(np.ones((6, 1)), np.ones((6, 1)), batch_size=1, epochs=2, verbose=0)
    kernel = float(keras.ops.convert_to_numpy(model.layers[-1].kernel)[0, 0])
    assert kernel == pytest.approx(-sum(float(schedule(step)) for step in range(12)), rel=1e-5)


def test_the_schedule_is_saved_with_the_optimizer():
    schedule = WarmupDecay(1.0, 8, warmup_steps=3, decay_steps=2, decay="sqrt")
    optimizer = keras.optimizers.Adam(schedule)
    revived = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    config = revived.get_config()["learning_rate"]["config"]
    assert config == schedule.get_config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"peak_lr": -1.0}, "`peak_lr` must be a finite number"),
        ({"final_lr": math.nan}, "`final_lr` must be a finite number"),
        ({"initial_lr": "0"}, "`initial_lr` must be a finite number"),
        ({"total_steps": 0}, "`total_steps` must be a positive integer"),
        ({"warmup_steps": -1}, "`warmup_steps` must be an integer of at least 0"),
        ({"warmup_steps": True}, "`warmup_steps` must be an integer of at least 0"),
        ({"decay_steps": 0}, "`decay_steps` must be a positive integer"),
        ({"warmup_steps": 6, "decay_steps": 5}, "are longer than `total_steps`, 10"),
        ({"decay": "step"}, "Unknown decay 'step'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        WarmupDecay(**{"peak_lr": 1.0, "total_steps": 10, **arguments})
