import keras
import pytest
from keras import Input, Model, layers

from keras_deepseek.backend.input_vocabularies import input_vocabularies


def bert(name="bert"):
    """Returns a graph that looks its tokens and segments up in tables of their own."""
    tokens, segments, mask = (
        Input((None,), dtype="int32", name=each) for each in ("tokens", "segments", "mask")
    )
    embedded = layers.Embedding(50, 4)(tokens) + layers.Embedding(2, 4)(segments)
    kept = embedded * keras.ops.expand_dims(keras.ops.cast(mask, "float32"), -1)
    return Model({"tokens": tokens, "segments": segments, "mask": mask}, kept, name=name)


def test_each_input_has_the_rows_of_its_own_table():
    model = bert()
    names = [tensor.name for tensor in model.inputs]
    expected = {"tokens": 50, "segments": 2, "mask": None}
    assert input_vocabularies(model, 3) == [expected[name] for name in names]


def test_inputs_of_a_graph_inside_are_followed():
    inner = bert()
    first, second = Input((None,), dtype="int32"), Input((None,), dtype="int32")
    clipped = keras.ops.minimum(second, 1)
    outputs = inner({"tokens": first, "segments": clipped, "mask": clipped})
    assert input_vocabularies(Model([first, second], outputs), 2) == [50, 2]


def test_of_two_tables_the_smaller_counts():
    tokens = Input((None,), dtype="int32")
    both = layers.Concatenate()([layers.Embedding(9, 2)(tokens), layers.Embedding(7, 2)(tokens)])
    assert input_vocabularies(Model(tokens, both), 1) == [7]


class Looking(layers.Layer):
    def __init__(self):
        super().__init__()
        self.table = layers.Embedding(11, 3)

    def call(self, tokens):
        return self.table(tokens)


def test_tables_inside_of_a_layer_are_found():
    tokens, features = Input((None,), dtype="int32"), Input((4,))
    model = Model([tokens, features], [Looking()(tokens), layers.Dense(2)(features)])
    assert input_vocabularies(model, 2) == [11, None]


@pytest.mark.parametrize("rows", [6, None])
def test_other_models_have_one_number_for_all(rows):
    stack = [layers.Embedding(rows, 3)] if rows else [layers.Dense(3)]
    model = keras.Sequential([Input((5,), dtype="int32" if rows else "float32"), *stack])
    assert input_vocabularies(model, 1) == [rows]

    class Subclassed(Model):
        def __init__(self):
            super().__init__()
            self.inner = model

        def call(self, inputs):
            return self.inner(inputs["a"]) + self.inner(inputs["b"])

    assert input_vocabularies(Subclassed(), 2) == [rows, rows]
