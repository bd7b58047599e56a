import keras
import pytest

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.training.batch_notes import ValidationWatch, noting_batch


class Plan:
    def __init__(self, num_made, is_making):
        self.num_made, self.is_making = num_made, is_making


def note(error, num_made=2, is_making=False, is_in_validation=False):
    validation = ValidationWatch()
    if is_in_validation:
        validation.on_test_begin()
    model = keras.Sequential([keras.layers.Dense(1)])
    with pytest.raises(type(error)), noting_batch(model, Plan(num_made, is_making), validation):
        raise error
    return "".join(getattr(error, "__notes__", []))


def test_it_says_where_the_training_was():
    assert "with batch 3 of" in note(ValueError(), is_making=True)
    assert "with batch 3 of" in note(InvalidInputError("no"), is_making=True)
    assert "after batch 2 of" in note(ValueError())
    assert "in the validation after batch 2 of" in note(ValueError(), is_in_validation=True)
    assert "after batch 2 of" in note(InvalidInputError("no"))
    assert not note(ValueError(), num_made=0)


def test_the_end_of_data_is_said_as_no_data():
    with (
        pytest.raises(InvalidInputError, match="hold no batch"),
        noting_batch(keras.Sequential(), Plan(0, False), ValidationWatch()),
    ):
        raise StopIteration


def test_data_that_end_too_early_are_no_lack_of_data():
    with (
        pytest.raises(InvalidInputError, match="raised StopIteration after batch 2"),
        noting_batch(keras.Sequential(), Plan(2, False), ValidationWatch()),
    ):
        raise StopIteration


def test_a_validation_begins_and_ends():
    validation = ValidationWatch()
    validation.on_test_begin()
    assert validation.is_in_validation
    validation.on_test_end()
    assert not validation.is_in_validation
