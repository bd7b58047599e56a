import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError, TrainingDivergedError
from keras_deepseek.training import Trainer
from keras_deepseek.training.fit.error_notes import PositionTracker, error_notes


class Plan:
    def __init__(self, num_steps=0, is_running=False, steps_per_execution=1):
        self.num_steps, self.is_running = num_steps, is_running
        self.steps_per_execution = steps_per_execution


def note(error, num_steps=2, begins=(0,), **arguments):
    """Returns the note of an error in a training whose epochs began after so many steps."""
    plan = Plan(**arguments)
    position = PositionTracker(plan)
    for epoch, plan.num_steps in enumerate(begins):
        position.on_epoch_begin(epoch)
    plan.num_steps = num_steps
    model = keras.Sequential([keras.layers.Dense(1)])
    with pytest.raises(type(error)), error_notes(model, plan, position):
        raise error
    return "".join(getattr(error, "__notes__", []))


def test_notes_name_the_batch():
    assert "with batch 3 of epoch 1, both" in note(ValueError(), is_running=True)
    assert "with batch 3 of" in note(InvalidInputError("no"), is_running=True)
    assert "with batch 3 to 6 of" in note(ValueError(), is_running=True, steps_per_execution=4)
    assert "after batch 2 of epoch 1" in note(ValueError())
    assert "after batch 2 of" in note(InvalidInputError("no"))
    assert not note(ValueError(), num_steps=0)


def test_batches_are_counted_in_their_epoch():
    assert "after batch 2 of epoch 3" in note(ValueError(), num_steps=10, begins=(0, 4, 8))
    assert "before batch 1 of epoch 3" in note(ValueError(), num_steps=8, begins=(0, 4, 8))


def test_a_diverged_training_gets_no_note():
    assert not note(TrainingDivergedError("batch 1 of epoch 1"))


def test_a_resumed_epoch_and_a_validation_are_described():
    plan = Plan(is_running=True)
    position = PositionTracker(plan)
    position.on_epoch_begin(1)
    position.on_train_batch_begin(5)
    assert position.describe() == "with batch 6 of epoch 2"
    plan.num_steps, plan.is_running = 1, False
    position.on_test_begin()
    assert position.describe() == "in the validation after batch 6 of epoch 2"
    position.on_test_end()
    assert position.describe() == "after batch 6 of epoch 2"


def test_stop_iteration_before_the_first_batch_means_no_data():
    with (
        pytest.raises(InvalidInputError, match="hold no batch"),
        error_notes(keras.Sequential(), Plan(), PositionTracker(Plan())),
    ):
        raise StopIteration


def test_stop_iteration_in_an_epoch_is_an_error_of_the_data():
    with (
        pytest.raises(InvalidInputError, match="raised StopIteration after batch 2"),
        error_notes(keras.Sequential(), Plan(2), PositionTracker(Plan(2))),
    ):
        raise StopIteration


@pytest.mark.each_backend
def test_a_callback_reads_the_weights_of_its_model_between_steps():
    class Read(keras.callbacks.Callback):
        def __init__(self, read):
            super().__init__()
            self.read = read

        def on_train_batch_begin(self, batch, logs=None):
            self.read(self)

        def on_train_batch_end(self, batch, logs=None):
            self.read(self)

    def read(model):
        sums.append((int(model.optimizer.iterations), *map(np.sum, model.get_weights())))

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    sums, data = [], (np.ones((8, 2)), np.ones((8, 1)))
    trainer = Trainer(model, optimizer="sgd", loss="mse")
    options = {"batch_size": 4, "verbose": 0}
    trainer.fit(*data, callbacks=Read(lambda callback: read(callback.model)), **options)
    assert [steps for steps, *_ in sums] == [0, 1, 1, 2]
    assert sums[1][1] != sums[3][1]
    if keras.backend.backend() == "jax":
        with pytest.raises(TypeError) as caught:
            trainer.fit(*data, callbacks=Read(lambda _: read(model)), **options)
        assert "Read them from the callback's `self.model`" in caught.value.__notes__[-1]
    trainer.fit(*data, **options)
    assert int(model.optimizer.iterations) > 2
