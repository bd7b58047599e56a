import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import MultiHeadLatentAttention, RotaryEmbedding
from keras_deepseek.layers.attention import multi_head_latent_attention as module
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.cached_decoding import decode_last_compiled
from tests.oracles.multi_head_latent_attention import multi_head_latent_attention
from tests.oracles.parity import check_case, named_weights, read_arguments, read_cases

GOLDEN = read_cases("multi_head_latent_attention")
SIZES = {
    "num_heads": 2,
    "nope_head_dim": 3,
    "rope_head_dim": 2,
    "value_head_dim": 4,
    "key_value_lora_rank": 5,
    "rotary": RotaryEmbedding(use_interleaved_pairs=True),
    "use_causal_mask": True,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 0.5,
}
YARN_ROTARY = RotaryEmbedding(use_interleaved_pairs=True, scaling=YARN)


def make_layer(**kwargs):
    layer = MultiHeadLatentAttention(**{**SIZES, **kwargs})
    layer.build((None, None, 6))
    return layer


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def run(layer, *args, **kwargs):
    return keras.ops.convert_to_numpy(layer(*args, **kwargs))


def oracle(layer, inputs):
    pairs = layer.rope_head_dim // 2
    weights = {name: keras.ops.convert_to_numpy(w) for name, w in named_weights(layer).items()}
    return multi_head_latent_attention(
        inputs,
        weights,
        layer.rotary.max_wavelength ** -(np.arange(pairs) / pairs),
        (layer.nope_head_dim + layer.rope_head_dim) ** -0.5,
        epsilon=layer.epsilon,
        causal=layer.use_causal_mask,
        interleaved=layer.rotary.use_interleaved_pairs,
    )


@pytest.mark.parametrize(
    "init_kwargs",
    [
        {"query_lora_rank": 7, "epsilon": 1e-3},
        {"use_causal_mask": False, "use_bias": True, "rope_head_dim": 4},
        # A rank below half of the expanded sizes is absorbed at every length.
        {"key_value_lora_rank": 3, "rotary": RotaryEmbedding(50.0)},
    ],
)
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(init_kwargs):
    arguments = {**SIZES, "kernel_initializer": "he_normal", **init_kwargs}
    LayerTestCase().run_layer_test(MultiHeadLatentAttention, arguments, (2, 5, 6), oracle=oracle)


def test_it_passes_the_layer_routine_with_yarn_dropout_and_positions():
    arguments = {**SIZES, "rotary": YARN_ROTARY, "dropout": 0.2, "seed": 3}
    LayerTestCase().run_layer_test(
        MultiHeadLatentAttention,
        arguments,
        {"inputs": (2, 5, 6), "positions": (2, 5)},
        {"inputs": "float32", "positions": "int32"},
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_and_gradients_are_those_of_transformers(name):
    case = GOLDEN[name]
    check_case(MultiHeadLatentAttention(**read_arguments(case)), case)


@settings(max_examples=4)
@given(
    batch_size=st.integers(1, 3),
    length=st.integers(1, 6),
    sizes=st.tuples(*[st.integers(1, 4)] * 5),
    query_lora_rank=st.none() | st.integers(1, 4),
)
def test_it_computes_the_formula_at_any_shape(batch_size, length, sizes, query_lora_rank):
    heads, nope, half_rope, value, rank = sizes
    layer = MultiHeadLatentAttention(
        heads,
        nope_head_dim=nope,
        rope_head_dim=2 * half_rope,
        value_head_dim=value,
        key_value_lora_rank=rank,
        query_lora_rank=query_lora_rank,
        rotary=RotaryEmbedding(use_interleaved_pairs=True),
        use_causal_mask=True,
    )
    inputs = draw(batch_size, length, 6)
    assert_close(run(layer, inputs), oracle(layer, inputs))


@pytest.mark.parametrize("kwargs", [{}, {"query_lora_rank": 4, "rotary": YARN_ROTARY}])
def test_absorbed_is_naive(kwargs, monkeypatch):
    layer, inputs = make_layer(**kwargs), draw(2, 5, 6)
    results = []
    for absorbs in (False, True):
        monkeypatch.setattr(module, "is_absorbed_cheaper", lambda *_, absorbs=absorbs: absorbs)
        results.append(run(layer, inputs))
    assert_close(results[1], results[0])
    assert np.abs(results[1] - results[0]).max() > 0  # Rounding: they were two ways.


def test_what_lora_adds_is_absorbed_too(monkeypatch):
    layer, inputs = make_layer(), draw(2, 5, 6)
    for up in (layer.key_up, layer.value_up):
        up.enable_lora(2)
        up.lora_kernel_b.assign(np.ones(up.lora_kernel_b.shape))
    naive = run(layer, inputs)
    monkeypatch.setattr(module, "is_absorbed_cheaper", lambda *_: True)
    assert_close(run(layer, inputs), naive)


def test_no_token_sees_what_comes_after_it():
    layer, inputs = make_layer(), draw(1, 6, 6)
    changed = inputs.copy()
    changed[:, 4:] += 1.0
    outputs, changed_outputs = run(layer, inputs), run(layer, changed)
    np.testing.assert_array_equal(outputs[:, :4], changed_outputs[:, :4])
    assert np.abs(outputs[:, 4:] - changed_outputs[:, 4:]).min() > 0
    seeing = make_layer(use_causal_mask=False)
    assert np.abs(run(seeing, inputs) - run(seeing, changed)).min() > 0


@pytest.mark.parametrize("pieces", [(0, 6), (0, 4, 5, 6), (0, 1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("rank", [3, 50])
@pytest.mark.each_backend
def test_cached_decoding_is_the_full_forward(pieces, rank):
    layer, inputs = make_layer(key_value_lora_rank=rank, rotary=YARN_ROTARY), draw(2, 6, 6)
    cache, outputs = layer.make_cache(2, 9), []
    for start, stop in itertools.pairwise(pieces):
        piece, cache = layer(inputs[:, start:stop], cache=cache, cache_index=start)
        outputs.append(keras.ops.convert_to_numpy(piece))
    assert_close(np.concatenate(outputs, axis=1), run(layer, inputs))


def decode_padded(layer, mask, inputs, num_steps):
    """Decodes a padded prompt and some steps; returns the outputs of prompt and steps."""
    prompt_length = mask.shape[1]
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype("int32")
    cache = layer.make_cache(len(mask), prompt_length + num_steps)
    outputs, cache = layer(
        inputs[:, :prompt_length], mask=mask, positions=positions, cache=cache, cache_index=0
    )
    collected = [keras.ops.convert_to_numpy(outputs)]
    for step in range(num_steps):
        slot = prompt_length + step
        outputs, cache = layer(
            inputs[:, slot : slot + 1],
            positions=positions.max(axis=1, keepdims=True) + 1 + step,
            cache=cache,
            cache_index=slot,
        )
        collected.append(keras.ops.convert_to_numpy(outputs))
    return np.concatenate(collected, axis=1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_sequences_of_different_lengths_decode_as_each_alone(side):
    layer, inputs = make_layer(query_lora_rank=4), draw(3, 7, 6)
    mask = np.ones((3, 5), bool)
    mask[1, :2] = mask[2, :4] = False
    mask = mask if side == "left" else mask[:, ::-1]
    outputs = decode_padded(layer, mask, inputs, num_steps=2)
    real = np.concatenate([mask, np.ones((3, 2), bool)], axis=1)
    for row in range(3):
        alone = run(layer, inputs[row : row + 1, real[row]])
        assert_close(outputs[row : row + 1, real[row]], alone)


def test_a_step_of_decoding_works_in_a_compiled_model():
    layer, inputs = make_layer(), draw(2, 5, 6)
    outputs = decode_last_compiled(layer, inputs, 4, 8)
    assert_close(outputs, run(layer, inputs)[:, 4:])


def test_a_model_takes_sequences_of_any_length():
    layer, inputs = make_layer(rotary=YARN_ROTARY), keras.Input((None, 6))
    model = keras.Model(inputs, layer(inputs))
    for length in (1, 5):
        batch = draw(2, length, 6)
        assert_close(model.predict(batch, verbose=0), run(layer, batch))


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
        "latent": (2, 4, 5),
        "rotary_key": (2, 4, 2),
        "mask": (2, 4),
    }
    assert_close(keras.ops.convert_to_numpy(results["outputs"]), run(layer, inputs))


def test_the_cache_holds_a_latent_and_one_rotary_key_a_token():
    cache = make_layer(num_heads=7, dtype="mixed_bfloat16").make_cache(3, 9)
    assert {name: tuple(tensor.shape) for name, tensor in cache.items()} == {
        "latent": (3, 9, 5),
        "rotary_key": (3, 9, 2),
        "mask": (3, 9),
    }
    assert keras.backend.standardize_dtype(cache["latent"].dtype) == "bfloat16"


@pytest.mark.parametrize("use_positions", [False, True])
def test_the_mask_that_the_inputs_carry_hides_padding(use_positions):
    embedding = keras.layers.Embedding(9, 6, mask_zero=True)
    layer = make_layer(use_causal_mask=False)
    positions = {"positions": np.array([[0, 1, 2, 3]])} if use_positions else {}
    tokens = np.array([[3, 4, 0, 0]])
    outputs = run(layer, embedding(tokens), **positions)
    assert_close(outputs[:, :2], run(layer, embedding(tokens[:, :2])))


def test_an_attention_mask_keeps_documents_apart():
    layer, inputs = make_layer(), draw(2, 5, 6)
    document = np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]])
    mask = document[:, :, None] == document[:, None, :]
    outputs = run(layer, inputs, attention_mask=mask)
    for row, cut in ((0, 2), (1, 4)):
        for part in (slice(0, cut), slice(cut, 5)):
            alone = run(layer, inputs[row : row + 1, part])
            assert_close(outputs[row : row + 1, part], alone)


def test_an_attention_mask_reaches_the_slots_of_a_cache_and_a_functional_model():
    layer, inputs = make_layer(), draw(2, 4, 6)
    hides_first = np.ones((1, 1, 6), bool)
    hides_first[..., 0] = False
    cache, outputs = layer.make_cache(2, 6), None
    for start, stop in ((0, 3), (3, 4)):
        outputs, cache = layer(
            inputs[:, start:stop],
            cache=cache,
            cache_index=start,
            attention_mask=hides_first,
        )
    attention_mask = np.tile(hides_first[..., :4], (2, 4, 1))
    symbolic = [keras.Input((None, 6)), keras.Input((None, None), dtype="bool")]
    model = keras.Model(symbolic, layer(symbolic[0], attention_mask=symbolic[1]))
    full = model.predict([inputs, attention_mask], verbose=0)
    assert_close(keras.ops.convert_to_numpy(outputs), full[:, 3:])
    assert np.abs(full - run(layer, inputs)).max() > 1e-3


def test_an_attention_mask_of_another_shape_is_refused():
    with pytest.raises(InvalidInputError, match=r"`attention_mask` must .* \(2, 3, 3\), received"):
        make_layer()(draw(2, 3, 6), attention_mask=np.ones((2, 3), bool))


def test_positions_shift_nothing_but_distances():
    layer, inputs = make_layer(), draw(1, 3, 6)
    outputs = run(layer, inputs)
    assert_close(run(layer, inputs, positions=np.array([[7, 8, 9]])), outputs)
    spread = run(layer, inputs, positions=np.array([[0, 4, 9]]))
    assert np.abs(spread - outputs).max() > 1e-3


def test_dropout_acts_in_training_alone():
    layer, inputs = make_layer(dropout=0.9, seed=1), draw(2, 5, 6)
    assert_close(run(layer, inputs), oracle(layer, inputs))
    assert np.abs(run(layer, inputs, training=True) - run(layer, inputs)).max() > 1e-3


def test_the_variables_have_names_that_a_layout_map_can_match():
    layer = make_layer(query_lora_rank=4, use_bias=True, name="attention")
    assert sorted(named_weights(layer)) == [
        "key_rope/bias",
        "key_rope/kernel",
        "key_up/kernel",
        "key_value_down/bias",
        "key_value_down/kernel",
        "key_value_norm/scale",
        "output/bias",
        "output/kernel",
        "query_down/bias",
        "query_down/kernel",
        "query_norm/scale",
        "query_up/kernel",
        "value_up/kernel",
    ]


@pytest.mark.parametrize("shape", [(0, 3, 6), (2, 0, 6), (1, 1, 6)])
def test_an_empty_batch_and_a_sequence_of_one_work(shape):
    assert run(make_layer(), draw(*shape)).shape == shape


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 0}, "`num_heads` must be a positive integer, received 0"),
        ({"query_lora_rank": 0}, "`query_lora_rank` must be a positive integer"),
        ({"key_value_lora_rank": 2.5}, "`key_value_lora_rank` must be a positive integer"),
        ({"rope_head_dim": 3}, "`rope_head_dim` must be even"),
        ({"dropout": 1.0}, "`dropout` must be a finite number of at least 0 and below 1"),
        ({"rotary": 10000.0}, "`rotary` must be a `RotaryEmbedding`, received 10000.0"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        make_layer(**kwargs)


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 4, 6), (2, 3, None)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidInputError, match=r"needs inputs of shape \(batch_size, length, dim"):
        MultiHeadLatentAttention(**SIZES).build(shape)


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2, 3, 3)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(InvalidInputError, match=r"`mask` must have .* \(2, 3\), received"):
        make_layer()(draw(2, 3, 6), mask=np.ones(shape, bool))


def test_a_sequence_beyond_the_trained_length_says_so():
    layer = make_layer(rotary=RotaryEmbedding(max_length=4))
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
    with pytest.raises(InvalidInputError, match="needs `use_causal_mask=True`"):
        make_layer(use_causal_mask=False)(inputs, cache=layer.make_cache(2, 4), cache_index=0)


@pytest.mark.parametrize("query_lora_rank", [None, 7])
def test_outputs_of_the_last_tokens_alone_are_those_of_all(query_lora_rank):
    layer, inputs = make_layer(query_lora_rank=query_lora_rank), draw(2, 5, 6)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], bool)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    attention_mask = np.abs(np.arange(5)[:, None] - np.arange(5))[None] < 4
    arguments = {"mask": mask, "positions": positions, "attention_mask": attention_mask}
    expected = run(layer, inputs, **arguments)[:, -2:]
    assert_close(run(layer, inputs, num_outputs=2, **arguments), expected)
    assert_close(run(layer, inputs, num_outputs=9), run(layer, inputs))
    # Their mask goes on with them.
    masked = keras.layers.Masking()(np.where(mask[..., None], inputs, 0))
    carried = layer(masked, num_outputs=2)._keras_mask
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(carried), mask[:, -2:])
    arguments["attention_mask"] = np.pad(attention_mask, [[0, 0], [0, 0], [0, 1]])
    whole, full_cache = layer(inputs, cache=layer.make_cache(2, 6), cache_index=0, **arguments)
    last, cache = layer(
        inputs, cache=layer.make_cache(2, 6), cache_index=0, num_outputs=2, **arguments
    )
    last, whole = map(keras.ops.convert_to_numpy, (last, whole))
    assert_close(last, whole[:, -2:])
    for name, tensor in full_cache.items():
        written, expected = map(keras.ops.convert_to_numpy, (cache[name], tensor))
        np.testing.assert_array_equal(written, expected)


def test_the_number_of_outputs_is_in_the_shape():
    layer, inputs = make_layer(), keras.Input((5, 6))
    assert layer(inputs, num_outputs=2).shape == (None, 2, 6)
    with pytest.raises(InvalidInputError, match="`num_outputs` must be a positive integer"):
        layer(draw(2, 5, 6), num_outputs=0)
