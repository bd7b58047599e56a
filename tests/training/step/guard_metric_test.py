import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend.keras_private.loss_and_metrics import add_metric
from keras_deepseek.training.step.step_guard import GuardMetric, StepGuard, Verdict


def judge(steps, loss, is_finite=True):
    return bool(ops.convert_to_numpy(steps.judge(ops.convert_to_tensor(loss), is_finite)))


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_steps_with_nan_or_infinity_are_bad(loss):
    steps = GuardMetric(StepGuard("skip"))
    assert judge(steps, 1.0)
    assert not judge(steps, np.float32(loss))
    assert not judge(steps, 1.0, is_finite=False)
    first, second = steps.read()
    assert first[::2] == (Verdict.LOSS_NOT_FINITE, 1)
    assert second == (Verdict.GRADIENTS_NOT_FINITE, 1.0, 2)
    assert judge(steps, 1.0)
    assert steps.num_bad == 2
    assert steps.read() == [second, (Verdict.GOOD, 1.0, 0)]
    assert float(ops.convert_to_numpy(steps.logs()["skipped_steps"])) == 2.0


def test_a_spike_is_far_above_the_running_mean():
    rng = np.random.default_rng(0)
    steps = GuardMetric(StepGuard("skip", spike=6.0))
    assert judge(steps, 50.0)  # Nothing is known yet.
    steps = GuardMetric(StepGuard("skip", spike=6.0))
    assert all(judge(steps, np.float32(rng.normal(2.0, 0.1))) for _ in range(60))
    assert not judge(steps, 4.0)
    assert steps.read()[-1] == (Verdict.LOSS_SPIKE, 4.0, 1)
    assert judge(steps, 2.3)
    assert judge(steps, 0.1)  # Downwards is no spike.


def test_without_spike_every_finite_loss_is_good():
    steps = GuardMetric(StepGuard("skip"))
    assert all(judge(steps, loss) for loss in [1.0] * 30 + [1e30])


def test_reset_state_keeps_the_records():
    steps = GuardMetric(StepGuard("skip"))
    judge(steps, np.float32(np.nan))
    steps.reset_state()
    steps.update_state(1.0)
    assert steps.result() == {}
    assert steps.num_bad == 1


def test_copy_states_has_layers_and_metrics():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    )
    frozen = keras.layers.Dense(1)
    frozen.trainable = False
    model.add(frozen)
    model.compile("sgd", "mse")
    steps = GuardMetric(StepGuard())
    with add_metric(model, steps):
        names = [variable.path for variable, _ in steps.copy_states(model)]
    assert any("moving_mean" in name for name in names)
    assert any("total" in name for name in names)
    assert not any("dense" in name or "seed" in name or "guarded" in name for name in names)
