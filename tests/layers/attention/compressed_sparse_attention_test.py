import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import CompressedSparseAttention
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.cached_decoding import decode, decode_compiled, draw_mask
from tests.oracles.deepseek_v4_attention import deepseek_v4_attention
from tests.oracles.parity import check_case, named_weights, read_arguments, read_cases

GOLDEN = {
    name: case
    for name, case in read_cases("deepseek_v4_attention").items()
    if case["layer"] == "CompressedSparseAttention"
}
SIZES = {
    "num_heads": 4,
    "head_dim": 6,
    "rope_head_dim": 4,
    "query_lora_rank": 5,
    "num_output_groups": 2,
    "output_lora_rank": 3,
    "sliding_window": 3,
    "index_num_heads": 16,  # With few, all may give a score of zero: a tie.
    "index_head_dim": 4,
    "index_top_k": 2,
    "compress_rate": 2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def make_layer(**kwargs):
    layer = CompressedSparseAttention(**{**SIZES, **kwargs})
    layer.build((None, None, 6))
    rng = np.random.default_rng(0)
    for name, weight in named_weights(layer).items():
        if name == "sinks" or "position_bias" in name:
            weight.assign(rng.normal(size=weight.shape))
    return layer


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def run(layer, *args, **kwargs):
    return keras.ops.convert_to_numpy(layer(*args, **kwargs))


def test_it_passes_the_layer_routine():
    arguments = {**SIZES, "dropout": 0.2, "seed": 3, "rope_max_wavelength": 50.0}
    LayerTestCase().run_layer_test(
        CompressedSparseAttention, arguments, (2, 9, 6), oracle=deepseek_v4_attention
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_and_gradients_are_those_of_transformers(name):
    case = GOLDEN[name]
    check_case(CompressedSparseAttention(**read_arguments(case)), case)


@settings(max_examples=2)
@given(
    length=st.sampled_from([1, 8, 23]),
    compress_rate=st.integers(1, 5),
    index_top_k=st.sampled_from([1, 3, 30]),
    side=st.sampled_from(["left", "anywhere"]),
)
def test_it_computes_the_formula_at_any_shape(length, side, **kwargs):
    layer, inputs = make_layer(**kwargs), draw(2, length, 6)
    mask = draw_mask(2, length, side)
    outputs = run(layer, inputs, mask=mask)
    assert_close(outputs[mask], deepseek_v4_attention(layer, inputs, mask)[mask])


@pytest.mark.parametrize("index_top_k", [2, 8])
def test_cached_decoding_is_the_full_forward(index_top_k):
    layer, inputs = make_layer(rope_scaling=YARN, index_top_k=index_top_k), draw(2, 14, 6)
    assert_close(decode(layer, inputs, (0, 6, 7, 7, 13, 14), max_length=17), run(layer, inputs))


@pytest.mark.parametrize("side", ["left", "right", "anywhere"])
def test_sequences_of_different_lengths_decode_as_each_alone(side):
    layer, inputs = make_layer(), draw(2, 14, 6)
    mask = np.concatenate([draw_mask(2, 12, side), np.ones((2, 2), bool)], axis=1)
    outputs = decode(layer, inputs, (0, 6, 12, 13, 14), 17, mask)
    assert_close(run(layer, inputs, mask=mask)[mask], outputs[mask])
    assert_close(outputs[mask], deepseek_v4_attention(layer, inputs, mask)[mask])


def test_positions_of_ones_own_shift_nothing_but_distances():
    layer, inputs = make_layer(), draw(2, 9, 6)
    outputs = run(layer, inputs)
    assert_close(run(layer, inputs, positions=np.arange(9)[None] + 7), outputs)
    cache = layer.make_cache(2, 9)
    for start, stop in ((0, 6), (6, 9)):
        positions = np.arange(start, stop)[None] + 7
        piece, cache = layer(
            inputs[:, start:stop], positions=positions, cache=cache, cache_index=start
        )
        assert_close(keras.ops.convert_to_numpy(piece), outputs[:, start:stop])


def test_a_step_of_decoding_works_in_a_compiled_model():
    layer, inputs = make_layer(), draw(2, 7, 6)
    outputs = decode_compiled(layer, inputs, 6, 17)
    assert_close(outputs, run(layer, inputs)[:, 6:])


def test_a_model_takes_sequences_of_any_length():
    layer, inputs = make_layer(), keras.Input((None, 6))
    model = keras.Model(inputs, layer(inputs))
    for length in (1, 11):
        given_array = draw(2, length, 6)
        assert_close(model.predict(given_array, verbose=0), run(layer, given_array))


def test_sequences_of_padding_alone_have_finite_outputs_and_gradients():
    layer, inputs, mask = make_layer(), draw(2, 9, 6), np.zeros((2, 9), bool)
    outputs, _ = layer(inputs, mask=mask, cache=layer.make_cache(2, 9), cache_index=0)
    assert np.isfinite(keras.ops.convert_to_numpy(outputs)).all()

    def total(tensor):
        return keras.ops.sum(layer(tensor, mask=mask) ** 2)

    gradients = backend.current().compute_gradients(total, [inputs], layer.trainable_variables)
    assert all(np.isfinite(array).all() for part in gradients for array in part)


@pytest.mark.parametrize("shape", [(0, 9, 6), (2, 0, 6), (1, 1, 6)])
def test_an_empty_batch_and_a_sequence_of_one_work(shape):
    layer = make_layer()
    assert run(layer, draw(*shape)).shape == shape
    outputs, _ = layer(draw(*shape), cache=layer.make_cache(shape[0], 9), cache_index=0)
    assert tuple(outputs.shape) == shape


def test_a_token_sees_no_entry_before_its_last_token():
    layer, inputs = make_layer(sliding_window=1, compress_rate=4), draw(1, 16, 6)
    changed = inputs.copy()
    changed[:, 5] += 1.0  # Of the second window, which the token 7 completes.
    outputs, others = run(layer, inputs), run(layer, changed)
    np.testing.assert_array_equal(outputs[:, [0, 1, 2, 3, 4, 6]], others[:, [0, 1, 2, 3, 4, 6]])
    assert np.abs(outputs[:, [5, 7, 8, 9]] - others[:, [5, 7, 8, 9]]).min() > 0


def test_choosing_all_entries_is_seeing_all():
    inputs, layers = draw(2, 13, 6), [make_layer(index_top_k=top_k) for top_k in (5, 6)]
    layers[1].set_weights(layers[0].get_weights())
    for layer in layers:  # One token less has no more entries than the first layer chooses.
        assert_close(run(layer, inputs[:, :11]), run(layers[0], inputs[:, :11]))
    assert np.abs(run(layers[0], inputs) - run(layers[1], inputs)).max() > 1e-4


def test_the_indexer_is_not_trained_unless_asked_to():
    layer = make_layer()
    names = set(named_weights(layer))
    trained = {weight.path.partition("/")[2] for weight in layer.trainable_weights}
    assert names - trained == {
        "indexer/compressor/gate/kernel",
        "indexer/compressor/norm/scale",
        "indexer/compressor/position_bias",
        "indexer/compressor/value/kernel",
        "indexer/head_weight/kernel",
        "indexer/query_up/kernel",
    }
    layer.indexer.trainable = True
    assert len(layer.trainable_weights) == len(names)


def test_the_cache_holds_keys_of_the_indexer_where_there_is_a_choice():
    shapes = {name: tuple(tensor.shape) for name, tensor in make_layer().make_cache(3, 9).items()}
    assert shapes == {
        "compressed_key": (3, 5, 6),
        "index_compressed_key": (3, 5, 4),
        "index_recent_gate": (3, 4, 8),
        "index_recent_value": (3, 4, 8),
        "recent_gate": (3, 4, 12),
        "recent_key": (3, 3, 6),
        "recent_value": (3, 4, 12),
        "mask": (3, 9),
    }
    assert not any(name.startswith("index_") for name in make_layer().make_cache(3, 5))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"compress_rate": 0}, "`compress_rate` must be a positive integer"),
        ({"index_top_k": 0}, "`index_top_k` must be a positive integer"),
        ({"index_head_dim": 3}, "`index_head_dim` must not be less than `rope_head_dim`"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        make_layer(**kwargs)
