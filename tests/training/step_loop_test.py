import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.errors import InvalidInputError
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


@pytest.mark.parametrize("precision", [None, "mixed_bfloat16"])
def test_steps_are_those_of_fit(precision):
    fitted, stepped = make(precision=precision), make(precision=precision)
    history = fitted.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    steps = list(stepped.steps(X, Y, batch_size=8, epochs=2, shuffle=False))
    assert [(step.epoch, step.number) for step in steps] == [
        (epoch, number) for epoch in range(2) for number in range(3)
    ]
    assert [step.logs["loss"] for step in steps[2::3]] == pytest.approx(history["loss"], rel=1e-6)
    for one, other in zip(stepped.model.get_weights(), fitted.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_between_steps_a_model_can_be_read_and_changed():
    trainer = make()
    seen = []
    for step in trainer.steps(X, Y, batch_size=10):
        seen.append(trainer.model.get_weights()[0])
        trainer.model.optimizer.learning_rate = 0.0
        if step.number == 0:
            trainer.evaluate(X, Y, verbose=0)
    np.testing.assert_array_equal(seen[0], seen[1])


def test_who_leaves_the_loop_has_ended_the_training():
    told = []
    callback = keras.callbacks.LambdaCallback(on_train_end=lambda logs: told.append("end"))
    trainer = make()
    for step in trainer.steps(batches(), epochs=1, callbacks=[callback]):
        if step.number == 1:
            break
    assert told == ["end"]
    assert int(keras.ops.convert_to_numpy(trainer.model.optimizer.iterations.value)) == 2
    assert "train_step" not in vars(trainer.model)


def test_callbacks_may_stop_it():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 1

    assert len(list(make().steps(X, Y, batch_size=4, epochs=3, callbacks=[Stop()]))) == 2


def test_steps_have_checkpoints_and_go_on_from_them(tmp_path):
    def make_again(folder):
        return make(checkpoint_dir=folder, checkpoint_every=1, seed=5)

    whole = make_again(tmp_path / "whole")
    expected = [step.logs for step in whole.steps(X, Y, batch_size=8, epochs=2)]
    first = make_again(tmp_path / "cut")
    for number, _ in enumerate(first.steps(X, Y, batch_size=8, epochs=2)):
        if number == 3:
            break
    second = make_again(tmp_path / "cut")
    rest = [step.logs for step in second.steps(X, Y, batch_size=8, epochs=2, resume=True)]
    assert rest == expected[-len(rest) :]
    assert len(rest) == 2
    for one, other in zip(second.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_unknown_arguments_are_named():
    with pytest.raises(InvalidInputError, match="Unknown argument of steps"):
        next(make().steps(X, Y, validation_data=(X, Y)))
