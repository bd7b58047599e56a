import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.callbacks import LRScheduler


def warmup_lr(step, total_steps, initial_lr, final_lr):
    return initial_lr + (final_lr - initial_lr) * step / total_steps


def one_weight_model():
    """Its gradient is 1 at every step, so plain SGD moves the weight by the learning rate."""
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
        ]
    )
    model.compile(keras.optimizers.SGD(99.0), loss=lambda y_true, y_pred: keras.ops.mean(y_pred))
    return model


class WeightRecorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.weights = [0.0]

    def on_train_batch_end(self, batch, logs=None):
        kernel = self.model.layers[-1].kernel
        self.weights.append(float(keras.ops.convert_to_numpy(kernel)[0, 0]))


def fit(model, scheduler, steps, epochs=1):
    recorder = WeightRecorder()
    recorder.weights = [float(keras.ops.convert_to_numpy(model.layers[-1].kernel)[0, 0])]
    model.fit(
        np.ones((steps, 1)),
        np.zeros((steps, 1)),
        batch_size=1,
        epochs=epochs,
        verbose=0,
        callbacks=[scheduler, recorder],
    )
    return -np.diff(recorder.weights)


def test_each_step_is_made_with_its_own_rate():
    scheduler = LRScheduler(func=warmup_lr, total_steps=8, initial_lr=0.5, final_lr=2.5)
    moved = fit(one_weight_model(), scheduler, steps=6, epochs=2)
    expected = [warmup_lr(min(step, 8), 8, 0.5, 2.5) for step in range(12)]
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_a_second_fit_goes_on_where_the_first_stopped():
    model = one_weight_model()
    scheduler = LRScheduler(func=warmup_lr, total_steps=8, initial_lr=1.0, final_lr=9.0)
    moved = np.concatenate([fit(model, scheduler, 3), fit(model, scheduler, 3)])
    np.testing.assert_allclose(moved, [1, 2, 3, 4, 5, 6], rtol=1e-5)


def test_the_rate_is_in_the_history():
    model = one_weight_model()
    history = model.fit(
        np.ones((4, 1)),
        np.zeros((4, 1)),
        batch_size=1,
        epochs=2,
        verbose=0,
        callbacks=[LRScheduler(func=warmup_lr, total_steps=8, initial_lr=0.0, final_lr=8.0)],
    )
    np.testing.assert_allclose(history.history["learning_rate"], [3.0, 7.0])


def test_a_loss_scaling_optimizer_is_scheduled_too():
    model = one_weight_model()
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(99.0))
    model.compile(optimizer, loss=model.loss)
    scheduler = LRScheduler(func=warmup_lr, total_steps=2, initial_lr=1.0, final_lr=3.0)
    np.testing.assert_allclose(fit(model, scheduler, 3), [1, 2, 3], rtol=1e-5)


@pytest.mark.parametrize("returned", [-1.0, float("nan"), float("inf"), None, "fast"])
def test_what_is_no_rate_is_refused_with_its_step(returned):
    scheduler = LRScheduler(func=lambda *_: returned, total_steps=8)
    with pytest.raises(InvalidInputError, match="for step 3"):
        scheduler.learning_rate(3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"func": 0.1, "total_steps": 5},
        {"func": warmup_lr},
        {"func": warmup_lr, "total_steps": "10"},
        {"func": warmup_lr, "total_steps": 10.5},
        {"func": warmup_lr, "total_steps": 10, "initial_lr": "0"},
        {"func": warmup_lr, "total_steps": 10, "final_lr": float("nan")},
    ],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(InvalidInputError):
        LRScheduler(**{"total_steps": 0, **arguments})


def test_a_schedule_in_the_optimizer_is_not_overruled():
    model = one_weight_model()
    schedule = keras.optimizers.schedules.CosineDecay(1.0, 10)
    model.compile(keras.optimizers.SGD(schedule), loss=model.loss)
    with pytest.raises(InvalidInputError, match="already has a schedule"):
        fit(model, LRScheduler(func=warmup_lr, total_steps=5), 2)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras refuses it on torch itself")
def test_several_steps_in_one_execution_are_refused():
    model = one_weight_model()
    model.compile("sgd", loss=model.loss, steps_per_execution=4)
    with pytest.raises(InvalidInputError, match="steps_per_execution=1"):
        fit(model, LRScheduler(func=warmup_lr, total_steps=5), 8)
