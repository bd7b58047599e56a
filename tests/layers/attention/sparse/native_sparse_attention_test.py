import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import NativeSparseAttention, RotaryEmbedding
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.cached_decoding import decode, decode_last_compiled
from tests.oracles.native_sparse_attention import native_sparse_attention
from tests.oracles.parity import named_weights

SIZES = {
    "num_heads": 4,
    "head_dim": 4,
    "num_key_value_heads": 2,
    "compression_block_size": 4,
    "compression_stride": 2,
    "selection_block_size": 4,
    "num_selected_blocks": 4,
    "sliding_window": 5,
    "kernel_initializer": "he_normal",
    "rotary": RotaryEmbedding(),
}
STATES = {
    "compression_key": (2, 24, 4),
    "compression_value": (2, 24, 4),
    "selection_key": (2, 24, 4),
    "selection_value": (2, 24, 4),
    "window_key": (2, 24, 4),
    "window_value": (2, 24, 4),
    "compressed_key": (2, 10, 4),
    "compressed_value": (2, 10, 4),
}


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def oracle(layer, inputs):
    weights = {name: to_numpy(weight) for name, weight in named_weights(layer).items()}
    return native_sparse_attention(inputs, weights, layer.get_config())


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def make(length=29, batch=2, **kwargs):
    layer = NativeSparseAttention(**{**SIZES, **kwargs})
    layer.build((None, None, 6))
    return layer, draw(batch, length, 6)


@pytest.mark.nightly
def test_it_passes_the_layer_routine():
    arguments = {**SIZES, "num_selected_blocks": 3, "num_local_blocks": 1, "use_bias": True}
    arguments |= {"value_head_dim": 3, "compression_hidden_dim": 5}
    arguments["rotary"] = RotaryEmbedding(use_interleaved_pairs=True, max_length=64)
    LayerTestCase().run_layer_test(NativeSparseAttention, arguments, (2, 17, 6), oracle=oracle)


@settings(max_examples=4)
@given(
    length=st.sampled_from([1, 3, 18, 41]),
    stride=st.integers(1, 3),
    in_strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    num_selected_blocks=st.integers(3, 5),
    sliding_window=st.integers(1, 9),
    num_key_value_heads=st.sampled_from([1, 2, 4]),
    value_head_dim=st.integers(1, 5),
)
def test_it_computes_the_formula_at_any_shape(length, stride, in_strides, **kwargs):
    sizes = {
        "compression_stride": stride,
        "compression_block_size": in_strides[0] * stride,
        "selection_block_size": in_strides[1] * stride,
    }
    layer, inputs = make(length, **sizes, **kwargs)
    assert_close(to_numpy(layer(inputs)), oracle(layer, inputs))


def test_scores_are_scaled_for_yarn():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
    yarn |= {"mscale": 1.0, "mscale_all_dim": 0.5}
    layer, inputs = make(rotary=RotaryEmbedding(scaling=yarn))
    plain, _ = make()
    plain.set_weights(layer.get_weights())
    layer.query_dense.kernel.assign(layer.query_dense.kernel * 0)
    plain.query_dense.kernel.assign(plain.query_dense.kernel * 0)
    assert_close(to_numpy(layer(inputs)), to_numpy(plain(inputs)))  # Without queries, no scores.
    layer.query_dense.kernel.assign(draw(6, 4, 4))
    plain.query_dense.kernel.assign(draw(6, 4, 4))
    assert not np.allclose(to_numpy(layer(inputs)), to_numpy(plain(inputs)))


@pytest.mark.parametrize("now", [9, 20])
def test_no_token_sees_what_comes_after_it(now):
    layer, inputs = make()
    changed = inputs.copy()
    changed[:, now:] += 1.0
    old_outputs, new_outputs = to_numpy(layer(inputs)), to_numpy(layer(changed))
    assert_close(new_outputs[:, :now], old_outputs[:, :now])
    assert not np.allclose(new_outputs[:, now:], old_outputs[:, now:])


def pad(lengths, length, side):
    """Returns a mask of sequences of these lengths; `"amid"` puts padding between tokens too."""
    positions = np.arange(length)
    mask = np.array([positions < size for size in lengths])
    if side == "left":
        return mask[:, ::-1]
    return mask if side == "right" else mask[:, np.random.default_rng(0).permutation(length)]


@pytest.mark.parametrize("side", ["left", "right", "amid"])
def test_padding_changes_nothing(side):
    layer, inputs = make(length=29, batch=3)
    mask = pad((29, 22, 3), 29, side)
    outputs = to_numpy(layer(np.where(mask[..., None], inputs, 1e4), mask=mask))
    for row in range(3):
        alone = to_numpy(layer(inputs[row : row + 1, mask[row]]))
        assert_close(outputs[row : row + 1, mask[row]], alone)
    assert np.isfinite(outputs).all()


def test_where_all_is_hidden_outputs_and_gradients_are_finite():
    layer, inputs = make(length=18)
    mask = np.ones((2, 18), bool)
    mask[0] = False

    def total(x):
        return keras.ops.sum(layer(x, mask=mask))

    by_input, by_variable = backend.current().compute.compute_gradients(
        total, [inputs], layer.trainable_variables
    )
    assert np.isfinite(to_numpy(layer(inputs, mask=mask))).all()
    assert all(np.isfinite(gradient).all() for gradient in (*by_input, *by_variable))


@pytest.mark.parametrize("pieces", [(0, 26, 27, 28, 29), (0, 3, 4, 17, 17, 29)])
def test_cached_decoding_is_the_full_forward(pieces):
    layer, inputs = make()
    outputs = decode(layer, inputs, pieces, max_length=29 if pieces[1] == 3 else 32)
    assert_close(outputs, to_numpy(layer(inputs)))


def test_positions_shift_nothing_but_distances():
    layer, inputs = make(length=20)
    outputs = to_numpy(layer(inputs))
    positions = np.arange(20)[None] + np.array([[7], [0]])
    assert_close(to_numpy(layer(inputs, positions=positions)), outputs)
    decoded = decode(layer, inputs, (0, 3, 17, 18, 20), max_length=24, positions=positions)
    assert_close(decoded, outputs)
    spread = to_numpy(layer(inputs, positions=3 * positions))
    assert np.abs(spread - outputs).max() > 1e-3


def test_positions_may_start_again_at_the_end_of_a_block():
    layer, inputs = make(length=12, compression_block_size=2, compression_stride=2)
    positions = np.arange(12)[None] % 6
    outputs = to_numpy(layer(inputs, positions=positions))
    decoded = decode(
        layer, inputs, (0, 5, 6, 12), max_length=12, positions=np.repeat(positions, 2, axis=0)
    )
    assert_close(decoded, outputs)


def test_without_a_rotary_embedding_it_has_no_positions():
    layer, inputs = make(length=9, head_dim=3, rotary=None)
    assert layer(inputs).shape == (2, 9, 6)
    with pytest.raises(InvalidInputError, match="received `positions`, but has no rotary"):
        layer(inputs, positions=np.arange(9)[None])


@pytest.mark.parametrize("side", ["left", "right"])
def test_sequences_of_different_lengths_decode_as_each_alone(side):
    layer, inputs = make(length=22, batch=3)
    mask = np.concatenate([pad((19, 12, 2), 19, side), np.ones((3, 3), bool)], axis=1)
    outputs = decode(layer, inputs, (0, 19, 20, 21, 22), 32, mask)
    for row in range(3):
        alone = to_numpy(layer(inputs[row : row + 1, mask[row]]))
        assert_close(outputs[row : row + 1, mask[row]], alone)


def test_a_cache_may_be_gone_back_in():
    layer, inputs = make(length=20)
    other = draw(2, 5, 6)
    _, cache = layer(inputs, cache=layer.make_cache(2, 32), cache_index=0)
    outputs, _ = layer(other, cache=cache, cache_index=13)
    whole = np.concatenate([inputs[:, :13], other], axis=1)
    assert_close(to_numpy(outputs), to_numpy(layer(whole))[:, 13:])


def test_a_step_of_decoding_works_in_a_compiled_model():
    layer, inputs = make(length=18)
    outputs = decode_last_compiled(layer, inputs, 17, 24)
    assert_close(outputs, to_numpy(layer(inputs))[:, 17:])


def test_a_functional_model_may_hand_the_cache_through():
    layer, inputs = make(length=1)
    cache = layer.make_cache(2, 22)
    assert {name: tuple(tensor.shape) for name, tensor in cache.items()} == {
        **{name: (2, *shape) for name, shape in STATES.items()},
        "compressed_key": (2, 2, 11, 4),
        "compressed_value": (2, 2, 11, 4),
        "mask": (2, 22),
    }
    symbolic = {
        name: keras.Input(
            tensor.shape[1:], dtype=keras.backend.standardize_dtype(tensor.dtype), name=name
        )
        for name, tensor in cache.items()
    }
    token = keras.Input((1, 6), name="token")
    outputs, new_cache = layer(token, cache=symbolic, cache_index=2)
    model = keras.Model([token, symbolic], {"outputs": outputs, **new_cache})
    results = model([keras.ops.convert_to_tensor(inputs), cache])
    assert to_numpy(results["mask"])[:, :4].tolist() == [[False, False, True, False]] * 2
    assert_close(to_numpy(results["outputs"]), to_numpy(layer(inputs)))


def test_a_model_takes_the_mask_of_an_embedding_and_learns_to_copy():
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(7, 16, mask_zero=True)(tokens)
    attention = NativeSparseAttention(**{**SIZES, "head_dim": 8})
    model = keras.Model(tokens, keras.layers.Dense(7)(x + attention(x)))
    model.compile(
        keras.optimizers.Adam(0.02), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    inputs = np.random.default_rng(0).integers(1, 7, (64, 18))
    inputs[:, 16:] = 0
    targets = np.roll(inputs, 1, axis=1)  # What came before, only attention can tell.
    targets[:, 0] = inputs[:, 0]
    losses = model.fit(inputs, targets, epochs=4, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]


def test_the_symbolic_output_keeps_an_unknown_length():
    layer, _ = make()
    assert layer(keras.Input((None, 6))).shape == (None, None, 6)


def test_the_variables_have_names_that_a_layout_map_can_match():
    layer, _ = make()
    branches = ("compression", "selection", "window")
    assert set(named_weights(layer)) == {
        "query/kernel",
        "gate/kernel",
        *(f"{branch}_{kind}/kernel" for branch in branches for kind in ("key", "value")),
        *(
            f"compress_{kind}/{name}"
            for kind in ("key", "value")
            for name in ("positions", "up/kernel", "down/kernel")
        ),
        "attention_output/kernel",
    }


@pytest.mark.parametrize("shape", [(0, 20, 6), (2, 0, 6), (1, 1, 6)])
def test_an_empty_batch_and_sequences_of_one_and_none_work(shape):
    layer, _ = make()
    assert tuple(layer(np.ones(shape, "float32")).shape) == shape
    mask = np.ones(shape[:2], bool)
    outputs, _ = layer(
        np.ones(shape, "float32"), mask=mask, cache=layer.make_cache(shape[0], 24), cache_index=2
    )
    assert tuple(outputs.shape) == shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "`num_heads` must be a positive integer, received 0"),
        ({"sliding_window": 0}, "`sliding_window` must be a positive integer, received 0"),
        ({"num_key_value_heads": 3}, "must divide `num_heads`, received 3 and 4"),
        ({"head_dim": 3}, "must be an even number of entries, received 3"),
        ({"compression_block_size": 5}, "`compression_block_size` must be a multiple .* 5 and 2"),
        ({"selection_block_size": 3}, "`selection_block_size` must be a multiple .* 3 and 2"),
        ({"num_selected_blocks": 2}, "must be at least .* received 2, 1 and 2"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        make(**arguments)


def test_a_call_that_does_not_fit_is_refused():
    layer, inputs = make(length=3, rotary=RotaryEmbedding(max_length=2))
    with pytest.raises(InvalidInputError, match="`max_length` of 2 positions, received 3 tokens"):
        layer(inputs)
    layer, inputs = make(length=3)
    with pytest.raises(InvalidInputError, match=r"`mask` must have .* \(2, 3\), received \(2, 4\)"):
        layer(inputs, mask=np.ones((2, 4), bool))
    with pytest.raises(InvalidInputError, match="Pad them to a fixed length, and mask the padding"):
        layer.call(keras.Input((None, 6)))
    with pytest.raises(InvalidInputError, match="2 slots, received 3 tokens"):
        layer(inputs, cache=layer.make_cache(2, 2), cache_index=0)
    with pytest.raises(InvalidInputError, match="`cache` without a `cache_index`"):
        layer(inputs, cache=layer.make_cache(2, 4))
    with pytest.raises(InvalidInputError, match=r"must hold .*'mask'.*, received \[\]"):
        layer(inputs, cache={}, cache_index=0)
    other = make(selection_block_size=8)[0].make_cache(2, 4)
    with pytest.raises(InvalidInputError, match=r"'compression_key' must have the shape \(2, 2, 4"):
        layer(inputs, cache=other, cache_index=0)
    with pytest.raises(InvalidInputError, match="`max_length` must be a positive integer"):
        layer.make_cache(2, 0)
