import keras
import numpy as np
import pytest

from keras_deepseek.training import Trainer
from keras_deepseek.training.fit.callback_errors import telling_from_the_data

X, Y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")


class Stopping(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            raise StopIteration


class StoppingTrainer(Trainer):
    def train_step(self, x, y=None, sample_weight=None):
        return next(iter(()))


def make(trainer_class=Trainer, **arguments):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    return trainer_class(model, optimizer="sgd", loss="mse", **arguments)


@pytest.mark.parametrize("folder", [None, "checkpoints"])
def test_a_stop_iteration_of_a_callback_is_not_the_end_of_the_data(tmp_path, folder):
    trainer = make(checkpoint_dir=folder and tmp_path / folder)
    with pytest.raises(
        RuntimeError, match=r"Stopping\.on_train_batch_end raised StopIteration"
    ) as (caught):
        trainer.fit(X, Y, batch_size=2, verbose=0, callbacks=Stopping())
    assert "after batch 2 of" in "".join(caught.value.__notes__)


def test_nor_is_that_of_a_step():
    with pytest.raises(RuntimeError, match="train_step raised StopIteration") as caught:
        make(StoppingTrainer).fit(X, Y, verbose=0)
    assert "with batch 1 of" in "".join(caught.value.__notes__)


def test_the_hooks_of_a_callback_are_lent_and_put_back():
    calls = []

    def note(*arguments):
        calls.append(arguments)

    own = keras.callbacks.LambdaCallback(on_epoch_begin=note)
    stopping = Stopping()
    with telling_from_the_data([own, stopping]):
        own.on_epoch_begin(3)
        assert set(vars(stopping)) > {"on_train_batch_end"}
        assert "on_train_begin" not in vars(stopping)  # It has none, and Keras need not call it.
    assert calls == [(3,)]
    assert own.on_epoch_begin is note
    assert "on_train_batch_end" not in vars(stopping)
