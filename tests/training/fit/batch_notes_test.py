import keras
import pytest

from keras_deepseek.errors import InvalidInputError, TrainingDivergedError
from keras_deepseek.training.fit.batch_notes import PlaceWatch, noting_batch


class Plan:
    def __init__(self, num_made=0, is_running=False, steps_per_execution=1):
        self.num_made, self.is_running = num_made, is_running
        self.steps_per_execution = steps_per_execution


def note(error, num_made=2, begins=(0,), **arguments):
    """Returns the note of an error in a training whose epochs began after so many steps."""
    plan = Plan(**arguments)
    place = PlaceWatch(plan)
    for epoch, plan.num_made in enumerate(begins):
        place.on_epoch_begin(epoch)
    plan.num_made = num_made
    model = keras.Sequential([keras.layers.Dense(1)])
    with pytest.raises(type(error)), noting_batch(model, plan, place):
        raise error
    return "".join(getattr(error, "__notes__", []))


def test_it_says_where_the_training_was():
    assert "with batch 3 of epoch 1, both" in note(ValueError(), is_running=True)
    assert "with batch 3 of" in note(InvalidInputError("no"), is_running=True)
    assert "with batch 3 to 6 of" in note(ValueError(), is_running=True, steps_per_execution=4)
    assert "after batch 2 of epoch 1" in note(ValueError())
    assert "after batch 2 of" in note(InvalidInputError("no"))
    assert not note(ValueError(), num_made=0)


def test_batches_are_counted_in_their_epoch():
    assert "after batch 2 of epoch 3" in note(ValueError(), num_made=10, begins=(0, 4, 8))
    assert "before batch 1 of epoch 3" in note(ValueError(), num_made=8, begins=(0, 4, 8))


def test_a_training_that_has_diverged_names_its_batch_itself():
    assert not note(TrainingDivergedError("batch 1 of epoch 1"))


def test_an_epoch_may_begin_in_its_middle_and_a_validation_begins_and_ends():
    plan = Plan(is_running=True)
    place = PlaceWatch(plan)
    place.on_epoch_begin(1)
    place.on_train_batch_begin(5)
    assert place.describe() == "with batch 6 of epoch 2"
    plan.num_made, plan.is_running = 1, False
    place.on_test_begin()
    assert place.describe() == "in the validation after batch 6 of epoch 2"
    place.on_test_end()
    assert place.describe() == "after batch 6 of epoch 2"


def test_the_end_of_data_is_said_as_no_data():
    with (
        pytest.raises(InvalidInputError, match="hold no batch"),
        noting_batch(keras.Sequential(), Plan(), PlaceWatch(Plan())),
    ):
        raise StopIteration


def test_data_that_end_too_early_are_no_lack_of_data():
    with (
        pytest.raises(InvalidInputError, match="raised StopIteration after batch 2"),
        noting_batch(keras.Sequential(), Plan(2), PlaceWatch(Plan(2))),
    ):
        raise StopIteration
