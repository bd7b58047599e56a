import logging

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.packed_state import pack_state, unpack_state
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.checkpoints.callback_states import CallbackStates


class Remembering(keras.callbacks.Callback):
    def __init__(self, patience=3):
        super().__init__()
        self.patience = patience
        self.seen = []
        self.best = np.inf
        self.weights = [np.zeros(2)]
        self.function = None

    def learn(self):
        self.seen.append(("loss", 0.5))
        self.best = np.float32(0.5)
        self.weights[0] += 1
        self.function = len
        self.later = {1: {"two"}}


class Speaking(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.hidden = object()
        self.number = 1

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


def through_a_file(states):
    packed, arrays = pack_state(states)
    return unpack_state(packed, [array.copy() for array in arrays])


def test_changed_attributes_are_saved():
    first = Remembering()
    states = CallbackStates([first])
    assert states.read()[0]["state"] == {}
    first.learn()
    read = through_a_file(states.read())
    assert set(read[0]["state"]) == {"seen", "best", "weights", "function", "later"}

    second = Remembering(patience=5)
    CallbackStates([second]).write(read)
    assert second.patience == 5  # Did not change since the training began: the user's own.
    assert second.seen == [("loss", 0.5)]
    assert type(second.best) is np.float32
    np.testing.assert_array_equal(second.weights[0], [1, 1])
    assert second.function is len
    assert second.later == {1: {"two"}}


def test_an_attribute_that_has_its_first_value_again_is_saved():
    first, second = Remembering(), Remembering()
    first.best = 0.5  # Of an earlier training.
    states = CallbackStates([first])
    first.best = np.inf  # As `on_train_begin` sets it.
    states.mark_begin()
    first.best = 0.5
    CallbackStates([second]).write(through_a_file(states.read()))
    assert second.best == 0.5


def test_a_function_without_a_name_logs_a_warning(caplog):
    callback = Remembering()
    states = CallbackStates([callback])
    callback.function = lambda: None
    states.mark_begin()
    states.read()
    assert not caplog.records  # A resumed training calls `on_train_begin` too.
    callback.function = lambda: None
    states.read()
    states.read()
    (record,) = caplog.records
    assert "Remembering.function has become <function" in record.message


def test_a_function_that_is_not_imported_is_refused():
    state = {"class": "Remembering", "state": {"function": "no:one"}, "functions": ["function"]}
    with pytest.raises(InvalidInputError, match=r"Remembering\.function is the function 'no:one'"):
        CallbackStates([Remembering()]).write([state])


def test_checkpoints_of_earlier_releases_keep_the_sign_of_min_delta():
    stopping = keras.callbacks.EarlyStopping("loss", min_delta=0.5)
    state = {"class": "EarlyStopping", "state": {"min_delta": -0.5, "best": 2.0, "wait": 1}}
    CallbackStates([stopping]).write([state])
    assert (stopping.min_delta, stopping.best, stopping.wait) == (0.5, 2.0, 1)


def test_states_are_copies():
    first, second = Remembering(), Remembering()
    states = CallbackStates([first])
    first.learn()
    read = states.read()
    first.weights[0] += 1
    CallbackStates([second]).write(read)
    second.weights[0] += 5
    second.seen.clear()
    assert len(read[0]["state"]["seen"]) == 1
    np.testing.assert_array_equal(read[0]["state"]["weights"][0], [1, 1])


def test_restored_attributes_are_saved_again():
    first = Remembering()
    states = CallbackStates([first])
    first.learn()
    second = Remembering()
    resumed = CallbackStates([second])
    resumed.write(states.read())
    assert resumed.read()[0]["state"]["seen"] == [("loss", 0.5)]


def test_a_callback_may_define_its_state():
    first, second = Speaking(), Speaking()
    states = CallbackStates([first])
    first.number = 7
    CallbackStates([second]).write(through_a_file(states.read()))
    assert second.number == 7


def test_callbacks_are_matched_by_class_and_order(caplog):
    first = [Remembering(), Speaking(), Remembering()]
    states = CallbackStates(first)
    first[0].seen, first[2].seen, first[1].number = ["a"], ["b"], 3
    second = [Remembering(), Remembering()]
    with caplog.at_level(logging.WARNING):
        CallbackStates(second).write(states.read())
    assert [callback.seen for callback in second] == [["a"], ["b"]]
    assert "['Speaking']" in caplog.text


def test_the_progress_bar_has_no_state():
    assert CallbackStates([keras.callbacks.ProgbarLogger()]).read() == []


def test_keras_s_own_callbacks_are_understood():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    stopping = keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True)
    history = keras.callbacks.History()
    states = CallbackStates([stopping, history])
    model.fit(np.ones((4, 2)), np.ones(4), epochs=2, verbose=0, callbacks=[stopping, history])
    read = through_a_file(states.read())
    again = [keras.callbacks.EarlyStopping("loss", patience=9), keras.callbacks.History()]
    CallbackStates(again).write(read)
    assert again[0].best == stopping.best
    np.testing.assert_array_equal(again[0].best_weights[0], stopping.best_weights[0])
    assert again[1].history == history.history
    assert again[1].epoch == [0, 1]


@pytest.mark.parametrize(("state", "is_said"), [({}, False), ({"wait": 2}, True)])
def test_states_of_missing_callbacks_log_a_warning(state, is_said, caplog):
    CallbackStates([]).write([{"class": "EarlyStopping", "state": state}])
    assert ("state of callbacks that this fit does not have" in caplog.text) == is_said
