import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer
from keras_deepseek.training.data.position_data import (
    check_data,
    check_options,
    check_validation_targets,
    position_data,
)

X = np.arange(12.0).reshape(6, 2)


def test_the_data_go_into_a_stream_and_the_rest_stays():
    options, data = position_data(
        {"x": X, "y": X[:, :1], "batch_size": 4, "epochs": 3, "shuffle": False}, seed=0
    )
    assert options == {"x": data, "epochs": 3}
    data.open()
    data.stream.begin_epoch()
    batches = list(data.stream.batches())
    assert [len(x) for x, _ in batches] == [4, 2]
    np.testing.assert_array_equal(batches[0][0], X[:4])


def test_the_order_is_drawn_by_the_seed():
    orders = []
    for seed in (0, 0, 1):
        _, data = position_data({"x": X, "batch_size": 6}, seed=seed)
        data.open()
        data.stream.begin_epoch()
        orders.append(next(iter(data.stream.batches()))[:, 0].tolist())
    assert orders[0] == orders[1] != orders[2]


def test_a_share_is_set_aside_for_validation():
    options, data = position_data({"x": X, "y": X, "validation_split": 0.5}, seed=0)
    np.testing.assert_array_equal(options["validation_data"][0], X[3:])
    assert data.stream.steps == 1


@pytest.mark.parametrize("x", [X[:0], {"a": X[:0]}, [X[:0], X[:0]], [], None])
def test_arrays_without_rows_are_refused(x):
    match = "`x` is None" if x is None else "The training data hold no batch"
    with pytest.raises(InvalidInputError, match=match):
        check_data(x, None)


def test_other_data_may_have_rows():
    for x in (X, {"a": X}, iter([X])):
        check_data(x, None)


class Batches(keras.utils.PyDataset):
    def __init__(self, length):
        super().__init__()
        self._length = length

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        return X, X


def test_data_that_come_in_batches_hold_some_and_know_their_size():
    check_data(Batches(1), None)
    with pytest.raises(InvalidInputError, match="hold no batch"):
        check_data(Batches(0), None)
    for x in (Batches(1), iter([X])):
        with pytest.raises(InvalidInputError, match="`batch_size` is for arrays"):
            check_data(x, 4)
    check_data(X, 4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps_per_epoch": 0}, "`steps_per_epoch` must be a positive integer, received 0"),
        ({"validation_split": 1.5}, "`validation_split` must be .* least 0 and below 1, received"),
        ({"validation_freq": 0}, "`validation_freq` must be a positive integer, received 0"),
        ({"initial_epoch": 3}, r"leaves no epoch of epochs=3: .* the number of the last epoch"),
        ({"initial_epoch": 1, "resume": True}, "resumes from a checkpoint, .* Leave it out"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, match):
    options = {"epochs": 3, "resume": False, **options}
    with pytest.raises(InvalidInputError, match=match):
        check_options(options, resume=options.pop("resume"))
    fitting = {"initial_epoch": 2, "validation_split": 0.5, "validation_freq": [1, 3]}
    check_options({"epochs": 3, **fitting}, resume=False)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((4, 2)), "needs targets, and `y` is None"),
        ((np.ones((4, 2)), np.ones(4)), "tuple .* means several inputs, not inputs and targets"),
    ],
)
def test_targets_that_are_forgotten_are_asked_for(x, message):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(InvalidInputError, match=message):
        Trainer(model, optimizer="sgd", loss="mse").fit(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weight": "balanced"}, "`class_weight` must be a dict of weights by class"),
        ({"validation_data": (X[:0], X[:0])}, "The validation data hold no batch"),
    ],
)
def test_options_of_the_data_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        check_options({"epochs": 1, **options}, resume=False)


def test_validation_data_without_targets_are_refused():
    with pytest.raises(InvalidInputError, match=r"use validation_data=\(x, y\)"):
        check_validation_targets(np.ones((3, 2)))
    for data in (None, (np.ones((3, 2)), np.ones(3)), iter([])):
        check_validation_targets(data)
