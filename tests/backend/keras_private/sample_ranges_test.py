import keras
import numpy as np
import pytest
from keras import Input, Model, layers

from keras_deepseek.backend.keras_private.sample_ranges import find_sample_ranges, vocabulary_sizes


def input_vocabularies(model, num_inputs):
    return [input_range.vocabulary_size for input_range in find_sample_ranges(model, num_inputs)]


def input_scales(model, num_inputs):
    return [input_range.scale for input_range in find_sample_ranges(model, num_inputs)]


def bert(name="bert"):
    """Returns a graph that looks its tokens and segments up in tables of their own."""
    tokens, segments, mask = (
        Input((None,), dtype="int32", name=input_name)
        for input_name in ("tokens", "segments", "mask")
    )
    embedded = layers.Embedding(50, 4)(tokens) + layers.Embedding(2, 4)(segments)
    embedded_tokens = embedded * keras.ops.expand_dims(keras.ops.cast(mask, "float32"), -1)
    return Model({"tokens": tokens, "segments": segments, "mask": mask}, embedded_tokens, name=name)


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


def test_ranges_of_the_first_layers_are_found():
    image, features, tokens = Input((4, 4, 1)), Input((2,)), Input((3,), dtype="int32")
    scaled = layers.Rescaling(1 / 255, offset=-0.5)(image)
    normal = layers.Normalization(mean=[1e5, 3.0], variance=[4e8, 9.0])(features)
    embedded = layers.Embedding(5, 2)(tokens)
    scales = input_scales(Model([image, features, tokens], [scaled, normal, embedded]), 3)
    np.testing.assert_allclose(scales[0], (127.5, 255.0))
    np.testing.assert_allclose(scales[1][0].reshape(-1), [1e5, 3.0])
    np.testing.assert_allclose(scales[1][1].reshape(-1), [2e4, 3.0])
    assert scales[2] is None


def test_layers_of_a_model_inside_and_of_a_stack_are_found():
    stack = keras.Sequential([Input((4,)), layers.Rescaling(0.1), layers.Dense(2)])
    (scale,) = input_scales(stack, 1)
    np.testing.assert_allclose(scale, (0.0, 10.0))
    inputs = Input((4,))
    (scale,) = input_scales(Model(inputs, stack(inputs)), 1)
    np.testing.assert_allclose(scale, (0.0, 10.0))


def test_others_expect_nothing():
    inputs = Input((4,))
    later = layers.Rescaling(0.1)(layers.Dense(3)(inputs))
    back = layers.Normalization(mean=1.0, variance=4.0, invert=True)(inputs)
    assert input_scales(Model(inputs, [later, back]), 1) == [None]
    assert input_scales(Model(inputs, layers.Rescaling(0.0)(inputs)), 1) == [None]

    class Subclassed(Model):
        def call(self, inputs):
            return inputs

    assert input_scales(Subclassed(), 2) == [None, None]


def input_values(model, num_inputs=1):
    values = [input_range.values for input_range in find_sample_ranges(model, num_inputs)]
    return [lookup_values and lookup_values.numbers.tolist() for lookup_values in values]


@pytest.fixture
def lookup():
    pytest.importorskip("tensorflow")
    return layers.IntegerLookup(vocabulary=[700, 500, 900])


VOCABULARY = [500, 700, 900, 901, 902]


def test_a_lookup_bounds_its_input_and_the_table_behind_it_does_not(lookup):
    tokens = Input((3,), dtype="int64")
    model = Model(tokens, layers.Embedding(4, 2)(lookup(tokens)))
    assert input_values(model) == [VOCABULARY]
    assert input_vocabularies(model, 1) == [None]


def test_a_lookup_is_found_behind_layers_that_change_no_number(lookup):
    left_input, right_input = Input((3,), dtype="int32"), Input((2,), dtype="int32")
    both = layers.Concatenate()([left_input, keras.ops.expand_dims(right_input, -1)[..., 0]])
    numbers = lookup(keras.ops.cast(layers.Reshape((5,))(both), "int64"))
    assert input_values(Model([left_input, right_input], numbers), 2) == [VOCABULARY, VOCABULARY]
    other = Input((3,), dtype="int64")
    assert input_values(Model(other, lookup(other * 2 + 1))) == [None]


def test_a_lookup_in_a_model_inside_and_a_table_outside(lookup):
    tokens = Input((3,), dtype="int64")
    inner = Model(tokens, lookup(tokens))
    again = Input((3,), dtype="int64")
    model = Model(again, layers.Embedding(4, 2)(inner(again)))
    assert input_values(model) == [VOCABULARY]
    assert input_vocabularies(model, 1) == [None]
    stack = keras.Sequential([Input((3,), dtype="int64"), inner, layers.Embedding(4, 2)])
    assert input_values(stack) == [VOCABULARY]


def test_a_lookup_and_a_table_of_one_input_bound_each_other(lookup):
    tokens = Input((3,), dtype="int64")
    outputs = [layers.Embedding(600, 2)(tokens), layers.Embedding(4, 2)(lookup(tokens))]
    (input_range,) = find_sample_ranges(Model(tokens, outputs), 1)
    assert (input_range.vocabulary_size, input_range.values.numbers.tolist()) == (600, VOCABULARY)


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX can't trace what TensorFlow does."
)
def test_a_lookup_inside_of_a_layer_is_found(lookup):
    class Finding(layers.Layer):
        def __init__(self):
            super().__init__()
            self.lookup = lookup
            self.table = layers.Embedding(4, 2)

        def call(self, tokens):
            return self.table(self.lookup(tokens))

    tokens = Input((3,), dtype="int64")
    model = Model(tokens, Finding()(tokens))
    assert input_values(model) == [VOCABULARY]
    assert input_vocabularies(model, 1) == [None]


def test_floats_that_are_looked_up_are_whole_numbers():
    stack = keras.Sequential([Input((5,)), layers.Embedding(4, 3)])
    (input_range,) = find_sample_ranges(stack, 1)
    assert (input_range.values.numbers.tolist(), input_range.values.takes_others) == (
        [0, 1, 2, 3],
        False,
    )


def test_the_padding_of_a_lookup_is_found():
    pytest.importorskip("tensorflow")
    tokens = Input((3,), dtype="int64")
    masked = layers.IntegerLookup(vocabulary=[5, 6], mask_token=9)
    (input_range,) = find_sample_ranges(Model(tokens, masked(tokens)), 1)
    assert input_range.mask_value == 9


def test_the_table_that_looks_up_a_whole_input_gives_its_size():
    model = bert()
    expected = {"tokens": 50, "segments": 2, "mask": None}
    assert vocabulary_sizes(model, 3) == [expected[tensor.name] for tensor in model.inputs]
    tokens, segments = Input((None,)), Input((None,), dtype="int32")
    outputs = bert()(
        {"tokens": tokens, "segments": keras.ops.minimum(segments, 1), "mask": segments}
    )
    both = layers.Embedding(40, 2)(keras.ops.cast(tokens, "int32"))
    assert vocabulary_sizes(Model([tokens, segments], [outputs, both]), 2) == [40, None]
    assert vocabulary_sizes(keras.Sequential([Input((3,)), layers.Embedding(5, 2)]), 1) == [5]


def test_parts_of_an_input_may_be_of_other_tables():
    pairs = Input((2,), dtype="int32")
    users, movies = layers.Embedding(9, 2)(pairs[:, 0]), layers.Embedding(99, 2)(pairs[:, 1])
    assert vocabulary_sizes(Model(pairs, users * movies), 1) == [None]
    tokens = Input((None,), dtype="int32")
    assert vocabulary_sizes(Model(tokens, Looking()(tokens)), 1) == [None]
