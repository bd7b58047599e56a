import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek import backend, layers
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import RotaryEmbedding, SlidingWindowAttention
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.cached_decoding import decode, decode_last_compiled, draw_mask
from tests.oracles.deepseek_v4_attention import deepseek_v4_attention
from tests.oracles.deepseek_v4_layers import GOLDEN, SIZES, YARN, make_v4_layer
from tests.oracles.parity import check_case, named_weights, read_arguments

DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 16}
WINDOW = SIZES["SlidingWindowAttention"]
for_each_kind = pytest.mark.parametrize("kind", SIZES)
"""Marks what holds for the layers that build upon this one, too."""


def make_layer(kind="SlidingWindowAttention", /, **kwargs):
    return make_v4_layer(kind, **kwargs)


def make_rotary(**kwargs):
    return RotaryEmbedding(use_interleaved_pairs=True, **kwargs)


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def run(layer, *args, **kwargs):
    return keras.ops.convert_to_numpy(layer(*args, **kwargs))


@pytest.mark.each_backend
def test_it_passes_the_layer_routine():
    arguments = {**WINDOW, "kernel_initializer": "he_normal", "epsilon": 1e-3}
    LayerTestCase().run_layer_test(
        SlidingWindowAttention, arguments, (2, 5, 6), oracle=deepseek_v4_attention
    )


@pytest.mark.nightly
def test_it_passes_the_layer_routine_with_yarn_dropout_and_positions():
    arguments = {**WINDOW, "head_dim": 4, "dropout": 0.2, "seed": 3}
    arguments["rotary"] = make_rotary(max_wavelength=50.0, scaling=YARN, max_length=64)
    LayerTestCase().run_layer_test(
        SlidingWindowAttention,
        arguments,
        {"inputs": (2, 5, 6), "positions": (2, 5)},
        {"inputs": "float32", "positions": "int32"},
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_and_gradients_are_those_of_transformers(name):
    case = GOLDEN[name]
    check_case(getattr(layers, str(case["layer"]))(**read_arguments(case)), case)


@settings(max_examples=3)
@given(
    length=st.sampled_from([1, 6, 40]),
    sliding_window=st.sampled_from([1, 4, 18]),
    num_heads=st.sampled_from([(1, 1), (6, 3)]),
    use_positions=st.booleans(),
)
def test_it_computes_the_formula_at_any_shape(length, sliding_window, num_heads, use_positions):
    heads, groups = num_heads
    layer = make_layer(num_heads=heads, num_output_groups=groups, sliding_window=sliding_window)
    inputs, mask = draw(2, length, 6), draw_mask(2, length, "anywhere")
    positions = np.cumsum(np.full((2, length), 2), axis=1) if use_positions else None
    outputs = run(layer, inputs, mask=mask, positions=positions)
    expected = deepseek_v4_attention(layer, inputs, mask, positions)
    assert_close(outputs[mask], expected[mask])


def test_no_token_sees_what_comes_after_it_or_left_the_window():
    layer, inputs = make_layer(), draw(1, 9, 6)
    changed = inputs.copy()
    changed[:, 4] += 1.0
    outputs, changed_outputs = run(layer, inputs), run(layer, changed)
    np.testing.assert_array_equal(
        outputs[:, [0, 1, 2, 3, 7, 8]], changed_outputs[:, [0, 1, 2, 3, 7, 8]]
    )
    assert np.abs(outputs[:, 4:7] - changed_outputs[:, 4:7]).min() > 0


@for_each_kind
def test_cached_decoding_is_the_full_forward(kind):
    layer, inputs = make_layer(kind, rotary=make_rotary(scaling=YARN)), draw(2, 14, 6)
    assert_close(decode(layer, inputs, (0, 6, 7, 7, 13, 14), max_length=17), run(layer, inputs))


def test_a_cache_of_as_many_entries_as_are_seen_needs_no_choice():
    layer, inputs = make_layer("CompressedSparseAttention", index_top_k=8), draw(2, 14, 6)
    assert_close(decode(layer, inputs, (0, 6, 7, 7, 13, 14), max_length=17), run(layer, inputs))


@for_each_kind
@pytest.mark.parametrize("side", ["left", "right", "anywhere"])
def test_sequences_of_different_lengths_decode_as_each_alone(side, kind):
    layer, inputs = make_layer(kind), draw(2, 14, 6)
    mask = np.concatenate([draw_mask(2, 12, side), np.ones((2, 2), bool)], axis=1)
    outputs = decode(layer, inputs, (0, 6, 12, 13, 14), 17, mask)
    assert_close(run(layer, inputs, mask=mask)[mask], outputs[mask])
    assert_close(outputs[mask], deepseek_v4_attention(layer, inputs, mask)[mask])


@for_each_kind
def test_positions_of_ones_own_shift_nothing_but_distances(kind):
    layer, inputs = make_layer(kind), draw(2, 9, 6)
    outputs = run(layer, inputs)
    assert_close(run(layer, inputs, positions=np.arange(9)[None] + 7), outputs)
    cache = layer.make_cache(2, 9)
    for start, stop in ((0, 6), (6, 9)):
        positions = np.arange(start, stop)[None] + 7
        piece, cache = layer(
            inputs[:, start:stop], positions=positions, cache=cache, cache_index=start
        )
        assert_close(keras.ops.convert_to_numpy(piece), outputs[:, start:stop])


@for_each_kind
def test_a_step_of_decoding_works_in_a_compiled_model(kind):
    layer, inputs = make_layer(kind), draw(2, 7, 6)
    outputs = decode_last_compiled(layer, inputs, 6, 17)
    assert_close(outputs, run(layer, inputs)[:, 6:])


@for_each_kind
def test_a_model_takes_sequences_of_any_length(kind):
    layer, inputs = make_layer(kind), keras.Input((None, 6))
    model = keras.Model(inputs, layer(inputs))
    for length in (1, 11):
        given_array = draw(2, length, 6)
        assert_close(model.predict(given_array, verbose=0), run(layer, given_array))


def test_a_functional_model_may_hand_the_cache_through():
    layer, inputs = make_layer(), draw(2, 1, 6)
    cache = layer.make_cache(2, 4)
    symbolic = {
        name: keras.Input(
            tensor.shape[1:], dtype=keras.backend.standardize_dtype(tensor.dtype), name=name
        )
        for name, tensor in cache.items()
    }
    token = keras.Input((1, 6), name="token")
    outputs, new_cache = layer(token, cache=symbolic, cache_index=0)
    model = keras.Model([token, symbolic], {"outputs": outputs, **new_cache})
    results = model([keras.ops.convert_to_tensor(inputs), cache])
    assert {name: tuple(tensor.shape) for name, tensor in results.items()} == {
        "outputs": (2, 1, 6),
        "recent_key": (2, 3, 6),
        "mask": (2, 4),
    }
    assert_close(keras.ops.convert_to_numpy(results["outputs"]), run(layer, inputs))


def test_the_cache_holds_the_window_alone():
    cache = make_layer(dtype="mixed_bfloat16").make_cache(3, 1000)
    assert {name: tuple(tensor.shape) for name, tensor in cache.items()} == {
        "recent_key": (3, 3, 6),
        "mask": (3, 1000),
    }
    assert keras.backend.standardize_dtype(cache["recent_key"].dtype) == "bfloat16"


def test_the_mask_that_the_inputs_carry_hides_padding():
    embedding, layer = keras.layers.Embedding(9, 6, mask_zero=True), make_layer()
    outputs = run(layer, embedding(np.array([[0, 0, 3, 4]])), positions=np.array([[0, 0, 5, 6]]))
    assert_close(outputs[:, 2:], run(layer, embedding(np.array([[3, 4]]))))


@for_each_kind
def test_sequences_of_padding_alone_have_finite_outputs_and_gradients(kind):
    layer, inputs, mask = make_layer(kind), draw(2, 9, 6), np.zeros((2, 9), bool)
    outputs, _ = layer(inputs, mask=mask, cache=layer.make_cache(2, 9), cache_index=0)
    assert np.isfinite(keras.ops.convert_to_numpy(outputs)).all()

    def total(tensor):
        return keras.ops.sum(layer(tensor, mask=mask) ** 2)

    gradients = backend.current().compute.compute_gradients(
        total, [inputs], layer.trainable_variables
    )
    assert all(np.isfinite(array).all() for part in gradients for array in part)


def test_dropout_acts_in_training_alone():
    layer, inputs = make_layer(dropout=0.9, seed=1), draw(2, 5, 6)
    assert_close(run(layer, inputs), deepseek_v4_attention(layer, inputs))
    assert np.abs(run(layer, inputs, training=True) - run(layer, inputs)).max() > 1e-3


def test_the_variables_have_names_that_a_layout_map_can_match():
    assert sorted(named_weights(make_layer(name="attention"))) == [
        "key_value/kernel",
        "key_value_norm/scale",
        "output/kernel",
        "output_down/kernel",
        "query_down/kernel",
        "query_norm/scale",
        "query_up/kernel",
        "sinks",
    ]


@for_each_kind
@pytest.mark.parametrize("shape", [(0, 9, 6), (2, 0, 6), (1, 1, 6)])
def test_an_empty_batch_and_a_sequence_of_one_work(shape, kind):
    layer = make_layer(kind)
    assert run(layer, draw(*shape)).shape == shape
    outputs, _ = layer(draw(*shape), cache=layer.make_cache(shape[0], 9), cache_index=0)
    assert tuple(outputs.shape) == shape


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 0}, "`num_heads` must be a positive integer, received 0"),
        ({"sliding_window": 0}, "`sliding_window` must be a positive integer"),
        ({"rope_head_dim": 3}, "`rope_head_dim` must be even and at most `head_dim`, 6"),
        ({"rope_head_dim": 8}, "`rope_head_dim` must be even and at most `head_dim`, 6"),
        ({"num_output_groups": 3}, "`num_output_groups` must divide `num_heads`, received 3 and 4"),
        ({"dropout": 1.0}, "`dropout` must be a finite number of at least 0 and below 1"),
        ({"rotary": None}, "`rotary` must be a `RotaryEmbedding`, received None"),
        (
            {"rotary": make_rotary(scaling=DYNAMIC)},
            "one of default, linear, llama3, yarn, received 'dynamic'",
        ),
    ],
)
def test_an_argument_out_of_its_range_is_refused(kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        make_layer(**kwargs)


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 4, 6), (2, 3, None)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidInputError, match=r"needs inputs of shape \(batch_size, length, dim"):
        SlidingWindowAttention(**WINDOW).build(shape)


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2, 3, 3)])
def test_a_mask_and_positions_of_another_shape_are_refused(shape):
    layer, inputs = make_layer(), draw(2, 3, 6)
    with pytest.raises(InvalidInputError, match=r"`mask` must have .* \(2, 3\), received"):
        layer(inputs, mask=np.ones(shape, bool))
    with pytest.raises(InvalidInputError, match=r"`positions` must be .* \(2, 3\), received"):
        layer(inputs, positions=np.ones(shape, "int32"))


def test_a_sequence_beyond_the_trained_length_says_so():
    layer = make_layer(rotary=make_rotary(max_length=4))
    with pytest.raises(InvalidInputError, match="`max_length` of 4 positions, received 5 tokens"):
        layer(draw(1, 5, 6))
    with pytest.raises(InvalidInputError, match="received 1 tokens from position 4"):
        layer(draw(1, 1, 6), cache=layer.make_cache(1, 9), cache_index=4)


def test_a_cache_that_does_not_fit_is_refused():
    layer, inputs = make_layer(), draw(2, 3, 6)
    with pytest.raises(InvalidInputError, match="2 slots, received 3 tokens"):
        layer(inputs, cache=layer.make_cache(2, 2), cache_index=0)
    with pytest.raises(InvalidInputError, match="`cache` without a `cache_index`"):
        layer(inputs, cache=layer.make_cache(2, 4))
    with pytest.raises(InvalidInputError, match="`cache_index` without a `cache`"):
        layer(inputs, cache_index=0)
    with pytest.raises(InvalidInputError, match=r"must have the shape \(2, 3, 6\), received"):
        layer(inputs, cache=make_layer(sliding_window=5).make_cache(2, 4), cache_index=0)
    with pytest.raises(InvalidInputError, match=r"'mask' must have the shape"):
        layer(inputs, cache=layer.make_cache(3, 4), cache_index=0)
