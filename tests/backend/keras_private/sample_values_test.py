import keras
import numpy as np
import pytest
from keras import layers

from keras_deepseek.backend.keras_private.sample_values import (
    SampleValues,
    find_sample_values,
    longest_sequence,
    padding_of,
)
from keras_deepseek.layers import RotaryEmbedding


@pytest.fixture
def lookup():
    pytest.importorskip("tensorflow")
    return layers.IntegerLookup


def numbers(*values, takes_others=True):
    return SampleValues(np.array(values), takes_others=takes_others)


def test_a_lookup_knows_its_vocabulary_and_is_given_others_where_it_takes_them(lookup):
    values = find_sample_values(lookup(vocabulary=[700, 500, 900]))
    assert values.takes_others
    assert values.numbers.tolist() == [500, 700, 900, 901, 902]
    values = find_sample_values(lookup(vocabulary=[700, 500, 900], num_oov_indices=0))
    assert (values.takes_others, values.numbers.tolist()) == (False, [500, 700, 900])


def test_the_mask_of_a_lookup_is_padding_and_no_unknown_number(lookup):
    layer = lookup(vocabulary=[1, 2, 3], mask_token=4)
    assert padding_of(layer) == 4
    assert 4 not in find_sample_values(layer).numbers
    assert padding_of(lookup(vocabulary=[1, 2])) is None


def test_an_unknown_number_is_below_if_none_is_above(lookup):
    largest = np.iinfo("int64").max
    assert find_sample_values(lookup(vocabulary=[largest - 1])).numbers.min() < largest - 1


def test_of_many_a_part_is_unknown(lookup):
    values = find_sample_values(lookup(vocabulary=np.arange(40)))
    assert (values.numbers >= 40).sum() == 11


def test_a_lookup_backwards_takes_places(lookup):
    values = find_sample_values(lookup(vocabulary=[700, 500], invert=True))
    assert (values.takes_others, values.numbers.tolist()) == (False, [0, 1, 2])


def test_categories_are_counted_from_zero():
    values = find_sample_values(layers.CategoryEncoding(num_tokens=3))
    assert (values.takes_others, values.numbers.tolist()) == (False, [0, 1, 2])


@pytest.mark.parametrize(
    ("boundaries", "values"),
    [
        ([0.5, 0.0], [-0.25, 0.25, 0.75]),
        ([10.0], [5.0, 15.0]),
        ([1.0, 2.0, 9.0], [-2.5, 1.5, 5.5, 12.5]),
    ],
)
def test_each_bin_has_a_number(boundaries, values):
    sample = find_sample_values(layers.Discretization(boundaries))
    assert (sample.takes_others, sample.numbers.tolist()) == (True, values)
    bins = np.digitize(sample.numbers, sorted(boundaries))
    assert bins.tolist() == list(range(len(boundaries) + 1))


def test_others_know_none():
    assert find_sample_values(layers.Dense(2)) is None
    assert find_sample_values(layers.Discretization(num_bins=3)) is None
    assert padding_of(layers.Dense(2)) is None
    assert padding_of(layers.Masking(-1.0)) == -1.0


def test_a_hash_has_a_number_for_padding():
    pytest.importorskip("tensorflow")
    assert padding_of(layers.Hashing(3, mask_value=7)) == 7
    assert padding_of(layers.Hashing(3, mask_value="")) is None
    assert find_sample_values(layers.Hashing(3)) is None


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (numbers(1, 2), None, numbers(1, 2)),
        (numbers(1, 2), numbers(2, 9), numbers(1, 2, 9)),
        (numbers(1, 2), numbers(2, 9, takes_others=False), numbers(2, 9, takes_others=False)),
        (numbers(2, 9, takes_others=False), numbers(1, 2), numbers(2, 9, takes_others=False)),
        (
            numbers(1, 2, 3, takes_others=False),
            numbers(2, 3, 4, takes_others=False),
            numbers(2, 3, takes_others=False),
        ),
        (
            numbers(1, takes_others=False),
            numbers(2, takes_others=False),
            numbers(1, takes_others=False),
        ),
    ],
)
def test_two_layers_are_given_what_fails_in_neither(first, second, joined):
    both = first.joined(second)
    assert both.numbers.tolist() == joined.numbers.tolist()
    assert both.takes_others == joined.takes_others


@pytest.mark.parametrize(
    ("dtype", "below", "expected"),
    [
        ("int64", None, [-3, 5, 200, 2**40 + 1]),
        ("uint8", None, [5, 200]),
        ("int32", 10, [5]),
        ("float32", None, [-3, 5, 200]),
    ],
)
def test_a_dtype_may_have_fewer(dtype, below, expected):
    cast = numbers(-3, 5, 200, 2**40 + 1).of_dtype(dtype, below)
    assert cast.tolist() == expected
    assert cast.dtype == dtype


def test_numbers_between_bins_are_rounded_for_integers():
    assert numbers(-2.5, 1.5, 1.75, 12.5).of_dtype("int32", None).tolist() == [-2, 1, 12]
    assert (
        keras.backend.standardize_dtype(numbers(0.5).of_dtype("float32", None).dtype) == "float32"
    )


def test_rotary_positions_limit_tokens_and_the_table_of_token_scores_does_not():
    class Scores(layers.Layer):
        def __init__(self, max_length):
            super().__init__()
            self.tokens = layers.ReversibleEmbedding(50, 4)
            self.rotary = RotaryEmbedding(max_length=max_length)

        def call(self, inputs):
            return self.tokens(self.rotary(self.tokens(inputs)), reverse=True)

    tokens = keras.Input((8,), dtype="int32")
    assert longest_sequence(keras.Model(tokens, Scores(max_length=400)(tokens))) == 400
    assert longest_sequence(keras.Model(tokens, Scores(max_length=None)(tokens))) is None
