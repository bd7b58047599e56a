"""The report of an optimization."""

import json

import keras
import numpy as np
from keras import layers

from keras_deepseek import graph


def test_the_report_says_what_was_done_and_is_json():
    inputs = keras.Input((5, 4))
    x = layers.GRU(4, return_sequences=True, name="recurrent")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x)[:, 0])
    report = graph.optimize(model, np.zeros((2, 5, 4), "float32"), measure=False).report
    text = str(report)
    assert "operations, now" in text
    assert "recurrent (GRU): " in text
    assert "head: computes 1 of 5 rows" in text
    assert "of any size: axis 0 of input 0" in text
    read = json.loads(json.dumps(report.to_dict()))
    assert read["operations"] == list(report.operations)
    assert read["leaves"]["recurrent"]["layer_class"] == "GRU"
    assert report.multiply_adds[0] > report.multiply_adds[1]


def test_work_in_training_includes_the_gradients_and_equal_lines_are_one():
    inputs = keras.Input((4,))
    x = layers.Dense(4, use_bias=False)(inputs)
    x = keras.ops.cast(layers.Dense(2, use_bias=False)(keras.ops.cast(x, "float32")), "float32")
    model = keras.Model(inputs, x)
    report = graph.optimize(model, np.zeros((3, 4), "float32"), mode="train", measure=False).report
    a_row = 2 * (4 * 4) + 3 * (4 * 2)  # The inputs have no gradient.
    assert report.multiply_adds[0] % a_row == 0
    assert " multiply-adds with gradients, now " in str(report)
    assert "  removed Cast x 2, first in functional" in str(report)


def test_a_batch_size_that_the_input_fixes_is_not_said_to_be_free():
    inputs = keras.Input((None, 4), batch_size=2)
    model = keras.Model(inputs, layers.Dense(3)(inputs))
    report = graph.optimize(model, np.zeros((2, 5, 4), "float32"), measure=False).report
    assert report.free_axes == ("axis 1 of input 0",)
