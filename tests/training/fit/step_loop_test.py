import signal

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer

X = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
Y = X[:, :1]


def make(**arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2, seed=1),
            keras.layers.Dense(1),
        ]
    )
    optimizer = keras.optimizers.Adam(0.01, use_ema=True)
    return Trainer(model, optimizer=optimizer, loss="mse", metrics=["mae"], **arguments)


def batches():
    for start in range(0, 20, 8):
        yield X[start : start + 8], Y[start : start + 8]


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_steps_are_those_of_fit(precision):
    fitted, stepped = make(precision=precision), make(precision=precision)
    history = fitted.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    steps = list(stepped.steps(X, Y, batch_size=8, epochs=2, shuffle=False))
    assert [(step.epoch, step.number) for step in steps] == [
        (epoch, number) for epoch in range(2) for number in range(3)
    ]
    assert [step.logs["loss"] for step in steps[2::3]] == pytest.approx(history["loss"], rel=1e-6)
    for received, expected in zip(
        stepped.model.get_weights(), fitted.model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(received, expected, rtol=1e-6)


def test_between_steps_a_model_can_be_read_and_changed():
    trainer = make()
    kernels = []
    for step in trainer.steps(X, Y, batch_size=10):
        kernels.append(trainer.model.get_weights()[0])
        trainer.model.optimizer.learning_rate = 0.0
        if step.number == 0:
            trainer.evaluate(X, Y, verbose=0)
    np.testing.assert_array_equal(kernels[0], kernels[1])


@pytest.mark.torch_alone
def test_leaving_the_loop_ends_the_training():
    events = []
    callback = keras.callbacks.LambdaCallback(on_train_end=lambda logs: events.append("end"))
    trainer = make()
    for step in trainer.steps(batches(), epochs=1, callbacks=[callback]):
        if step.number == 1:
            break
    assert events == ["end"]
    assert int(keras.ops.convert_to_numpy(trainer.model.optimizer.iterations.value)) == 2
    assert "train_step" not in vars(trainer.model)


@pytest.mark.parametrize("num_steps", [2, 3])
def test_evaluate_and_fit_work_after_leaving_the_loop(num_steps):
    trainer = make()
    for _ in range(3):
        for step in trainer.steps(X, Y, batch_size=8):
            if step.number == num_steps - 1:
                break
        assert np.isfinite(trainer.evaluate(X, Y, verbose=0)[0])
    assert int(trainer.model.optimizer.iterations) == 3 * num_steps


def test_callbacks_may_stop_the_loop():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 1

    assert len(list(make().steps(X, Y, batch_size=4, epochs=3, callbacks=[Stop()]))) == 2


def test_steps_resume_from_checkpoints(tmp_path):
    def make_again(folder):
        return make(checkpoint_dir=folder, checkpoint_every=1, seed=5)

    whole = make_again(tmp_path / "whole")
    expected = [step.logs for step in whole.steps(X, Y, batch_size=8, epochs=2)]
    first = make_again(tmp_path / "cut")
    for number, _ in enumerate(first.steps(X, Y, batch_size=8, epochs=2)):
        if number == 3:
            break
    second = make_again(tmp_path / "cut")
    resumed_logs = [step.logs for step in second.steps(X, Y, batch_size=8, epochs=2, resume=True)]
    assert resumed_logs == expected[-len(resumed_logs) :]
    assert len(resumed_logs) == 2
    for received, reference in zip(
        second.model.get_weights(), whole.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(received, reference)


def assert_same(trainer, reference):
    for received, expected in zip(
        trainer.model.get_weights(), reference.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(received, expected)


@pytest.mark.torch_alone
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_resume_continues_where_the_loop_was_left(tmp_path, stop):
    """In the middle of an epoch, after its last step, and after the first of the next."""

    def make_again(name):
        return make(checkpoint_dir=tmp_path / name, seed=5)

    def go_through(trainer, **options):
        return trainer.steps(X, Y, batch_size=8, epochs=3, **options)

    whole = make_again("whole")
    expected = [(step.epoch, step.logs) for step in go_through(whole)]
    for number, _ in enumerate(go_through(make_again("left")), 1):
        if number == stop:
            break
    again = make_again("left")
    assert again.resume() == stop
    resumed_steps = [(step.epoch, step.logs) for step in go_through(again)]
    assert resumed_steps == expected[stop:]
    assert_same(again, whole)


@pytest.mark.torch_alone
def test_a_training_within_an_open_loop_is_refused():
    trainer, whole = make(), make()
    list(whole.steps(X, Y, batch_size=8, shuffle=False))
    steps = trainer.steps(X, Y, batch_size=8, shuffle=False)
    next(steps)
    for train in (
        lambda: trainer.fit(X, Y, verbose=0),
        lambda: next(trainer.steps(X, Y)),
        lambda: next(Trainer(trainer.model).steps(X, Y)),
        lambda: trainer.find_learning_rate(X, Y),
    ):
        with pytest.raises(InvalidInputError, match=r"finish the open loop.*close"):
            train()
    assert len(list(steps)) == 2
    assert_same(trainer, whole)
    steps = trainer.steps(X, Y)
    next(steps)
    steps.close()
    trainer.fit(X, Y, verbose=0)


@pytest.mark.torch_alone
@pytest.mark.parametrize("is_named", [False, True])
def test_sigterm_before_leaving_the_loop_reaches_the_former_handler(tmp_path, is_named):
    checkpoint_steps = []
    old_handler = signal.signal(
        signal.SIGTERM, lambda *_: checkpoint_steps.append(CheckpointFolder(tmp_path).steps())
    )
    try:
        steps = [make(checkpoint_dir=tmp_path).steps(X, Y, batch_size=8)]
        for _ in steps[0] if is_named else steps.pop():
            signal.raise_signal(signal.SIGTERM)
            assert not checkpoint_steps
            break
        if is_named:
            steps[0].close()
    finally:
        signal.signal(signal.SIGTERM, old_handler)
    assert checkpoint_steps == [[1]]  # After a checkpoint.


@pytest.mark.torch_alone
def test_sigterm_in_the_loop_takes_effect_after_the_next_step(tmp_path):
    trainer = make(checkpoint_dir=tmp_path)
    step_numbers = []
    with pytest.raises(SystemExit):  # noqa: PT012 - the loop raises it.
        for step in trainer.steps(X, Y, batch_size=8):
            step_numbers.append(step.number)
            signal.raise_signal(signal.SIGTERM)
    assert step_numbers == [0]
    assert CheckpointFolder(tmp_path).latest().step == 2


def test_unknown_arguments_are_named():
    with pytest.raises(InvalidInputError, match=r"Unknown steps\(\) argument"):
        next(make().steps(X, Y, validation_data=(X, Y)))
