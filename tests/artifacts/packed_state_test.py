import json
import math

import numpy as np
import pytest

from keras_deepseek.artifacts.checkpoint import pack_state, unpack_state
from keras_deepseek.errors import InvalidInputError


def through_json(state):
    packed, arrays = pack_state(state)
    return unpack_state(json.loads(json.dumps(packed, allow_nan=False)), arrays)


@pytest.mark.parametrize(
    "state",
    [
        None,
        True,
        -3,
        2**70,
        0.1,
        math.inf,
        -math.inf,
        "naïve",
        b"\x00\xff",
        [1, [2.5, "three"]],
        (1, ("two", None)),
        {1, 2},
        {"name": {"inner": []}},
        {1: "one", ("a", 2): "pair"},
        {"$kind": "array", "value": 0},
        {"$kind": {"$kind": 1}},
    ],
)
def test_what_is_packed_comes_out_again(state):
    received = through_json(state)
    assert received == state
    assert type(received) is type(state)


def test_not_a_number_stays_one():
    assert math.isnan(through_json(math.nan))


def test_an_exact_float_keeps_each_bit():
    value = float(np.nextafter(0.1, 1))
    assert through_json([value]) == [value]


def test_arrays_stand_beside_the_json_and_are_not_copied():
    array = np.arange(6).reshape(2, 3)
    packed, arrays = pack_state({"weights": (array, np.float32(0.5))})
    assert arrays[0] is array
    json.dumps(packed)
    received = unpack_state(packed, arrays)["weights"]
    assert received[0] is array
    assert type(received[1]) is np.float32
    assert received[1] == np.float32(0.5)


@pytest.mark.parametrize("value", [object(), lambda: 0, np.array([None]), {"inner": [object()]}])
def test_what_can_not_be_saved_is_named(value):
    with pytest.raises(InvalidInputError, match=r"A \w+ can't be saved"):
        pack_state(value)


def test_a_list_that_holds_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(InvalidInputError, match="levels deep"):
        pack_state(endless)
