import keras
import numpy as np
import pytest

from keras_deepseek.training import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras, before us.

X, Y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")


def stopping(hook):
    class Stopping(keras.callbacks.Callback):
        def run(self, batch, logs=None):
            if batch == 1:
                raise StopIteration

    setattr(Stopping, hook, Stopping.run)
    return Stopping()


def raise_stop_iteration(self, *arguments, **options):
    raise StopIteration


class StoppingTrainer(Trainer):
    def train_step(self, x, y=None, sample_weight=None):
        return next(iter(()))


def make(trainer_class=Trainer, **arguments):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    return trainer_class(model, optimizer="sgd", loss="mse", **arguments)


@pytest.mark.parametrize("folder", [None, "checkpoints"])
@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_train_batch_end"])
def test_a_stop_iteration_of_a_callback_is_an_error(tmp_path, folder, hook):
    trainer = make(checkpoint_dir=folder and tmp_path / folder)
    with pytest.raises(RuntimeError, match=r"Stopping.* raised StopIteration"):
        trainer.fit(X, Y, batch_size=2, verbose=0, callbacks=stopping(hook))


@pytest.mark.parametrize(
    "hook", ["on_train_begin", "on_epoch_begin", "on_epoch_end", "on_train_end", "on_test_begin"]
)
def test_a_stop_iteration_outside_of_a_batch_names_the_hook(hook):
    class Stopping(keras.callbacks.Callback):
        pass

    setattr(Stopping, hook, raise_stop_iteration)
    with pytest.raises(RuntimeError, match=r"Stopping.raise_stop_iteration raised StopIteration"):
        make().fit(X, Y, verbose=0, callbacks=Stopping(), validation_data=(X, Y))


def test_a_stop_iteration_in_a_loop_over_steps_is_an_error():
    with pytest.raises(RuntimeError, match=r"Stopping.run raised StopIteration"):
        list(make().steps(X, Y, batch_size=2, callbacks=stopping("on_train_batch_end")))


def test_a_stop_iteration_in_a_validation_is_an_error():
    data = {"validation_data": (X, Y), "validation_batch_size": 2}
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        make().fit(X, Y, verbose=0, callbacks=stopping("on_test_batch_end"), **data)


def test_data_that_end_are_no_error():
    rows = ((X[index : index + 2], Y[index : index + 2]) for index in range(0, 8, 2))
    history = make().fit(rows, epochs=1, verbose=0, callbacks=keras.callbacks.Callback())
    assert len(history.history["loss"]) == 1


def test_a_stop_iteration_of_a_train_step_is_an_error():
    with pytest.raises(RuntimeError, match="train_step raised StopIteration") as caught:
        make(StoppingTrainer).fit(X, Y, verbose=0)
    assert "with batch 1 of" in "".join(caught.value.__notes__)
