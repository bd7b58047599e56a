import inspect
import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import CachedAttention, RotaryEmbedding
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.cached_decoding import decode_last_compiled


def make_attention(kind, **kwargs):
    if kind == "grouped":
        return keras.layers.GroupQueryAttention(3, 4, 2, **kwargs)
    return keras.layers.MultiHeadAttention(2, 3, **kwargs)


def serialize(layer):
    """A config makes a layer anew for each that holds it, as the routine needs."""
    return keras.saving.serialize_keras_object(layer)


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def run(layer, *args, **kwargs):
    return keras.ops.convert_to_numpy(layer(*args, **kwargs))


@pytest.mark.each_backend
def test_it_passes_the_layer_routine():
    attention = make_attention("grouped", kernel_initializer="he_normal")
    LayerTestCase().run_layer_test(CachedAttention, {"attention": serialize(attention)}, (2, 4, 6))


def test_it_passes_the_layer_routine_with_a_rotary_embedding_and_dropout():
    LayerTestCase().run_layer_test(
        CachedAttention,
        {
            "attention": serialize(
                keras.layers.MultiHeadAttention(2, 4, value_dim=3, dropout=0.2, seed=1)
            ),
            "rotary": serialize(RotaryEmbedding(max_length=9)),
        },
        {"inputs": (2, 4, 6), "positions": (2, 4)},
        {"inputs": "float32", "positions": "int32"},
    )


OPTIONS = {
    "plain": ("multi_head", {}),
    "output_shape, no bias": ("multi_head", {"output_shape": 7, "use_bias": False}),
    # Without dropout, Keras on JAX wants values of the size of keys.
    "value_dim, dropout": ("multi_head", {"value_dim": 5, "dropout": 0.5}),
    "gate": ("multi_head", {"use_gate": True}),
    "window": ("multi_head", {"sliding_window": 3}),
    "grouped": ("grouped", {}),
    "grouped, dropout, no bias": ("grouped", {"dropout": 0.5, "use_bias": False}),
    "grouped, gate": ("grouped", {"use_gate": True}),
    "grouped, window": ("grouped", {"sliding_window": 3}),
}


@pytest.fixture(params=OPTIONS)
def attention(request):
    kind, kwargs = OPTIONS[request.param]
    parameters = inspect.signature(type(make_attention(kind)).__init__).parameters
    missing = sorted(set(kwargs) - set(parameters))
    if missing:
        pytest.skip(f"Keras {keras.__version__} has no {missing} there.")
    return make_attention(kind, **kwargs)


def test_the_outputs_are_those_of_the_layer_that_it_holds(attention):
    inputs = draw(2, 6, 6)
    expected = run(attention, inputs, inputs, use_causal_mask=True)
    assert_close(run(CachedAttention(attention), inputs), expected)


def test_padding_is_hidden_as_by_the_layer_that_it_holds(attention):
    inputs, mask = draw(2, 6, 6), np.ones((2, 6), bool)
    mask[1, :3] = False
    expected = run(
        attention,
        inputs,
        inputs,
        attention_mask=mask[:, None] & mask[..., None],
        use_causal_mask=True,
    )
    outputs = run(CachedAttention(attention), inputs, mask=mask)
    assert_close(outputs[mask], expected[mask])
    assert np.isfinite(outputs).all()


@pytest.mark.parametrize("pieces", [(0, 6), (0, 3, 4, 5, 6)])
def test_cached_decoding_is_the_full_forward(attention, pieces):
    layer, inputs = CachedAttention(attention), draw(2, 6, 6)
    cache, outputs = layer.make_cache(2, 9), []
    for start, stop in itertools.pairwise(pieces):
        piece, cache = layer(inputs[:, start:stop], cache=cache, cache_index=start)
        outputs.append(keras.ops.convert_to_numpy(piece))
    expected = run(attention, inputs, inputs, use_causal_mask=True)
    assert_close(np.concatenate(outputs, axis=1), expected)


@settings(max_examples=2)
@given(batch_size=st.integers(1, 3), length=st.integers(1, 5), heads=st.integers(1, 3))
def test_it_holds_at_any_shape(batch_size, length, heads):
    attention = keras.layers.GroupQueryAttention(2, 2 * heads, heads)
    layer, inputs = CachedAttention(attention), draw(batch_size, length, 4)
    expected = run(attention, inputs, inputs, use_causal_mask=True)
    assert_close(run(layer, inputs), expected)
    outputs, _ = layer(inputs, cache=layer.make_cache(batch_size, 6), cache_index=0)
    assert_close(keras.ops.convert_to_numpy(outputs), expected)


@pytest.mark.parametrize(("side", "rotates"), [("left", True), ("right", False)])
def test_sequences_of_different_lengths_decode_as_each_alone(side, rotates):
    rotary = RotaryEmbedding() if rotates else None
    layer = CachedAttention(keras.layers.GroupQueryAttention(4, 4, 2), rotary=rotary)
    inputs, mask = draw(2, 6, 6), np.ones((2, 4), bool)
    mask[1, :2] = False
    mask = mask if side == "left" else mask[:, ::-1]
    token_numbers = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype("int32")
    positions = {"positions": token_numbers} if rotates else {}
    outputs, cache = layer(
        inputs[:, :4], mask=mask, cache=layer.make_cache(2, 6), cache_index=0, **positions
    )
    collected = [keras.ops.convert_to_numpy(outputs)]
    for slot in (4, 5):
        if rotates:
            positions["positions"] = token_numbers.max(axis=1, keepdims=True) + slot - 3
        outputs, cache = layer(
            inputs[:, slot : slot + 1], cache=cache, cache_index=slot, **positions
        )
        collected.append(keras.ops.convert_to_numpy(outputs))
    outputs = np.concatenate(collected, axis=1)
    real = np.concatenate([mask, np.ones((2, 2), bool)], axis=1)
    for row in range(2):
        alone = run(layer, inputs[row : row + 1, real[row]])
        assert_close(outputs[row : row + 1, real[row]], alone)


@pytest.mark.each_backend
def test_a_step_of_decoding_works_in_a_compiled_model():
    layer, inputs = CachedAttention(make_attention("grouped"), rotary=make_rotary()), draw(2, 4, 6)
    outputs = decode_last_compiled(layer, inputs, 3, 5)
    assert_close(outputs, run(layer, inputs)[:, 3:])


def make_rotary():
    return RotaryEmbedding(rotary_dim=2, use_interleaved_pairs=True)


def test_a_model_of_any_length_fits_saves_and_hands_the_mask_of_its_embedding_on(tmp_path):
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(7, 6, mask_zero=True)(tokens)
    attention = keras.layers.MultiHeadAttention(2, 3)
    model = keras.Model(tokens, CachedAttention(attention)(x))
    model.compile("sgd", "mse")
    ids = np.array([[1, 2, 3, 0], [4, 5, 0, 0]])
    model.fit(ids, np.zeros((2, 4, 6)), verbose=0)
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(run(revived, ids), run(model, ids))
    assert_close(run(model, ids)[1:, :2], run(model, ids[1:, :2]))


def test_a_functional_model_may_hand_the_cache_through():
    layer, inputs = CachedAttention(make_attention("grouped")), draw(2, 1, 6)
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
        "key": (2, 4, 2, 3),
        "value": (2, 4, 2, 3),
        "mask": (2, 4),
    }
    assert_close(keras.ops.convert_to_numpy(results["outputs"]), run(layer, inputs))


def test_no_token_sees_what_comes_after_it():
    layer, inputs = CachedAttention(make_attention("grouped")), draw(1, 5, 6)
    changed = inputs.copy()
    changed[:, 3:] += 1.0
    outputs, changed_outputs = run(layer, inputs), run(layer, changed)
    assert_close(outputs[:, :3], changed_outputs[:, :3], 1e-6)
    assert np.abs(outputs[:, 3:] - changed_outputs[:, 3:]).min() > 0


def test_the_weights_are_those_of_the_layer_that_it_holds():
    attention = make_attention("multi_head", name="inner")
    layer = CachedAttention(attention, name="outer")
    layer.build((None, None, 6))
    assert [weight.path.rpartition("inner/")[2] for weight in layer.weights] == [
        f"{part}/{kind}"
        for part in ("query", "key", "value", "attention_output")
        for kind in ("kernel", "bias")
    ]
    assert all(
        weight is inner_weight
        for weight, inner_weight in zip(layer.weights, attention.weights, strict=True)
    )


def test_the_cache_is_in_the_dtype_of_the_layer_that_it_holds():
    layer = CachedAttention(make_attention("grouped", dtype="mixed_bfloat16"))
    cache = layer.make_cache(3, 5)
    assert keras.backend.standardize_dtype(cache["key"].dtype) == "bfloat16"
    assert keras.backend.standardize_dtype(layer(draw(1, 2, 6)).dtype) == "bfloat16"


def test_dropout_acts_in_training_alone():
    layer, inputs = (
        CachedAttention(make_attention("multi_head", dropout=0.9, seed=1)),
        draw(2, 5, 6),
    )
    assert np.abs(run(layer, inputs, training=True) - run(layer, inputs)).max() > 1e-3


@pytest.mark.parametrize("shape", [(0, 3, 6), (2, 0, 6), (1, 1, 6)])
def test_an_empty_batch_and_a_sequence_of_one_work(shape):
    assert run(CachedAttention(make_attention("grouped")), draw(*shape)).shape == shape


class _OwnCall(keras.layers.MultiHeadAttention):
    def call(self, query, value, **kwargs):
        return query


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 8, "must be a `MultiHeadAttention` or `GroupQueryAttention` of Keras, received 8"),
        (keras.layers.Attention, "have a cache already"),
        (
            lambda: make_attention("multi_head", attention_axes=(1, 2)),
            r"`attention_axes` .*\(1, 2\)",
        ),
        (lambda: make_attention("grouped", flash_attention=True), "allows only flash attention"),
        (lambda: _OwnCall(2, 3), "_OwnCall overrides `call`"),
    ],
)
def test_a_layer_that_no_cache_fits_is_refused(make, message):
    with pytest.raises(InvalidInputError, match=message):
        CachedAttention(make())


def test_what_is_no_rotary_embedding_is_refused():
    with pytest.raises(InvalidInputError, match="`rotary` must be a `RotaryEmbedding` or None"):
        CachedAttention(make_attention("grouped"), rotary=True)


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 4, 6), (2, 3, None)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidInputError, match=r"needs inputs of shape \(batch_size, length, dim"):
        CachedAttention(make_attention("grouped")).build(shape)


def test_arguments_of_a_call_that_do_not_fit_are_refused():
    layer, inputs = CachedAttention(make_attention("grouped")), draw(2, 3, 6)
    with pytest.raises(InvalidInputError, match=r"`mask` must have .* received \(2, 4\)"):
        layer(inputs, mask=np.ones((2, 4), bool))
    with pytest.raises(InvalidInputError, match="2 slots, received 3 tokens"):
        layer(inputs, cache=layer.make_cache(2, 2), cache_index=0)
    with pytest.raises(InvalidInputError, match="`cache` without a `cache_index`"):
        layer(inputs, cache=layer.make_cache(2, 4))
    with pytest.raises(InvalidInputError, match="received `positions`, but has no rotary"):
        layer(inputs, positions=np.zeros((2, 3), "int32"))


def test_a_sequence_beyond_the_trained_length_says_so():
    layer = CachedAttention(
        keras.layers.MultiHeadAttention(2, 4), rotary=RotaryEmbedding(max_length=4)
    )
    with pytest.raises(InvalidInputError, match="`max_length` of 4 positions, received 5 tokens"):
        layer(draw(1, 5, 6))
