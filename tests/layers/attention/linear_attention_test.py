import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.layers import LinearAttention, RotaryEmbedding
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.cached_decoding import decode, decode_last_compiled
from tests.oracles.linear_attention import elu_plus_one, linear_attention
from tests.oracles.parity import named_weights

ROTARY = {"class_name": "RotaryEmbedding", "registered_name": "keras_deepseek>RotaryEmbedding"}
ROTARY |= {"module": "keras_deepseek.layers", "config": {"max_wavelength": 20.0}}


@keras.saving.register_keras_serializable("keras_deepseek_tests")
def both_signs(x):
    return keras.ops.relu(keras.ops.concatenate([x, -x], axis=-1))


FEATURE_MAPS = {
    "elu_plus_one": elu_plus_one,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "both_signs": lambda x: np.maximum(np.concatenate([x, -x], axis=-1), 0),
}


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def oracle(layer, inputs, mask=None):
    name = getattr(layer.feature_map, "__name__", layer.feature_map)
    frequencies = None
    if layer.rotary is not None:
        pairs = layer._count_features() // 2
        frequencies = layer.rotary.max_wavelength ** -(np.arange(pairs) / pairs)
    return linear_attention(
        inputs,
        {name: to_numpy(weight) for name, weight in named_weights(layer).items()},
        feature_map=FEATURE_MAPS[name],
        causal=layer.use_causal_mask,
        epsilon=layer.epsilon,
        mask=mask,
        frequencies=frequencies,
    )


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def make(length=11, batch=2, dim=6, **kwargs):
    arguments = {"num_heads": 2, "head_dim": 4, "chunk_size": 4, "use_causal_mask": True}
    layer = LinearAttention(**{**arguments, **kwargs})
    layer.build((None, None, dim))
    return layer, draw(batch, length, dim)


@pytest.mark.parametrize(
    "init_kwargs",
    [
        {"use_causal_mask": True, "chunk_size": 3, "value_head_dim": 3, "rotary": ROTARY},
        {"feature_map": both_signs, "use_bias": False, "kernel_initializer": "he_normal"},
    ],
)
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(init_kwargs):
    arguments = {"num_heads": 2, "head_dim": 4, "epsilon": 1e-3, **init_kwargs}
    LayerTestCase().run_layer_test(LinearAttention, arguments, (2, 5, 6), oracle=oracle)


@settings(max_examples=4)
@given(
    length=st.sampled_from([1, 7, 30]),
    num_heads=st.integers(1, 3),
    value_head_dim=st.integers(1, 4),
    chunk_size=st.integers(1, 8),
    use_causal_mask=st.booleans(),
    feature_map=st.sampled_from(["elu_plus_one", "softplus"]),
    rotary=st.sampled_from([None, ROTARY]),
)
def test_it_computes_the_formula_at_any_shape(length, **kwargs):
    layer, inputs = make(length, **kwargs)
    mask = np.random.default_rng(1).random(inputs.shape[:2]) > 0.3
    assert_close(to_numpy(layer(inputs)), oracle(layer, inputs))
    assert_close(to_numpy(layer(inputs, mask=mask)), oracle(layer, inputs, mask))


def test_chunks_change_nothing_over_a_long_sequence():
    layer, inputs = make(length=500, chunk_size=16)
    whole, _ = make(length=500, chunk_size=1000)
    whole.set_weights(layer.get_weights())
    assert_close(to_numpy(layer(inputs)), to_numpy(whole(inputs)))


@pytest.mark.parametrize("now", [1, 6])
def test_a_causal_layer_never_looks_ahead(now):
    layer, inputs = make()
    disturbed = inputs.copy()
    disturbed[:, now:] += 1e3
    undisturbed_outputs, disturbed_outputs = to_numpy(layer(inputs)), to_numpy(layer(disturbed))
    np.testing.assert_array_equal(undisturbed_outputs[:, :now], disturbed_outputs[:, :now])
    assert not np.allclose(undisturbed_outputs[:, now:], disturbed_outputs[:, now:])
    seeing, _ = make(use_causal_mask=False)
    undisturbed_outputs, disturbed_outputs = to_numpy(seeing(inputs)), to_numpy(seeing(disturbed))
    assert not np.allclose(undisturbed_outputs[:, :now], disturbed_outputs[:, :now])


@pytest.mark.parametrize("use_causal_mask", [False, True])
def test_padding_anywhere_changes_nothing_that_is_shown(use_causal_mask):
    layer, inputs = make(use_causal_mask=use_causal_mask)
    mask = np.ones((2, 11), bool)
    mask[0, :5] = mask[1, 3:6] = mask[1, 9:] = False
    outputs = to_numpy(layer(np.where(mask[..., None], inputs, 1e4), mask=mask))
    for row in range(2):
        alone = to_numpy(layer(inputs[row : row + 1, mask[row]]))
        assert_close(outputs[row : row + 1, mask[row]], alone)
    assert np.isfinite(outputs).all()


@pytest.mark.parametrize("use_causal_mask", [False, True])
@pytest.mark.parametrize("feature_map", ["elu_plus_one", "relu"])
def test_where_all_is_hidden_outputs_and_gradients_are_finite(use_causal_mask, feature_map):
    layer, inputs = make(
        length=5, use_causal_mask=use_causal_mask, feature_map=feature_map, use_bias=False
    )
    mask = np.ones((2, 5), bool)
    mask[0] = False
    outputs = to_numpy(layer(inputs, mask=mask))
    np.testing.assert_array_equal(outputs[0], 0)

    def total(x):
        return keras.ops.sum(layer(x, mask=mask))

    by_input, by_variable = backend.current().compute.compute_gradients(
        total, [inputs], layer.trainable_variables
    )
    assert all(np.isfinite(gradient).all() for gradient in (*by_input, *by_variable))
    np.testing.assert_array_equal(by_input[0][0], 0)


@pytest.mark.parametrize("rotary", [None, ROTARY])
@pytest.mark.parametrize("pieces", [(0, 8, 9, 10, 11), (0, 1, 7, 7, 11)])
@pytest.mark.each_backend
def test_cached_decoding_is_the_full_forward(rotary, pieces):
    layer, inputs = make(rotary=rotary, value_head_dim=3)
    assert_close(decode(layer, inputs, pieces, max_length=16), to_numpy(layer(inputs)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_sequences_of_different_lengths_decode_as_each_alone(side):
    layer, inputs = make(length=9, batch=3, rotary=ROTARY)
    mask = np.ones((3, 9), bool)
    mask[1, :3] = mask[2, 1:6] = side == "right"
    mask[1, 3:7] = mask[2, 6:7] = side == "left"
    if side == "left":
        mask[2, :6] = False
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype("int32")
    outputs = decode(layer, inputs, (0, 7, 8, 9), 16, mask, positions)
    for row in range(3):
        alone = to_numpy(layer(inputs[row : row + 1, mask[row]]))
        assert_close(outputs[row : row + 1, mask[row]], alone)


def test_the_states_are_of_one_size_and_in_float32():
    layer, inputs = make(dtype="mixed_bfloat16", value_head_dim=3)
    for max_length in (1, 1000):
        cache = layer.make_cache(3, max_length)
        assert {name: tuple(tensor.shape) for name, tensor in cache.items()} == {
            "key_value": (3, 2, 4, 3),
            "key": (3, 2, 4),
            "mask": (3, max_length),
        }
    outputs, cache = layer(inputs, cache=layer.make_cache(2, 11), cache_index=0)
    assert keras.backend.standardize_dtype(cache["key_value"].dtype) == "float32"
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"


def test_a_step_of_decoding_works_in_a_compiled_model():
    layer, inputs = make(length=5, rotary=ROTARY)
    outputs = decode_last_compiled(layer, inputs, 4, 8)
    assert_close(outputs, to_numpy(layer(inputs))[:, 4:])


def test_a_functional_model_may_hand_the_cache_through():
    layer, inputs = make(length=1)
    cache = layer.make_cache(2, 4)
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
    assert {name: tuple(tensor.shape) for name, tensor in results.items()} == {
        "outputs": (2, 1, 6),
        "key_value": (2, 2, 4, 4),
        "key": (2, 2, 4),
        "mask": (2, 4),
    }
    assert to_numpy(results["mask"]).tolist() == [[False, False, True, False]] * 2
    assert_close(to_numpy(results["outputs"]), to_numpy(layer(inputs)))


def test_a_model_takes_sequences_of_any_length():
    layer, _ = make()
    inputs = keras.Input((None, 6))
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, 6)
    for length in (1, 6):
        batch = draw(2, length, 6)
        assert_close(model.predict(batch, verbose=0), to_numpy(layer(batch)))


def test_a_length_that_is_known_to_the_graph_alone_works():
    layer, inputs = make()
    infer = backend.current().inference.compile_inference(
        NamedModel(keras.Model(symbolic := keras.Input((None, 6), name="x"), layer(symbolic)))
    )
    for length in (2, 4, 9):
        (outputs,) = infer({"x": inputs[:, :length]}).values()
        assert_close(outputs, to_numpy(layer(inputs[:, :length])))


def test_it_takes_the_mask_of_an_embedding():
    embedding = keras.layers.Embedding(9, 6, mask_zero=True)
    layer, _ = make(use_causal_mask=False, rotary=ROTARY)
    tokens = np.array([[3, 4, 0, 0]])
    for positions in (None, np.array([[0, 1, 2, 3]])):
        outputs = to_numpy(layer(embedding(tokens), positions=positions))
        assert_close(outputs[:, :2], to_numpy(layer(embedding(tokens[:, :2]))))


def test_positions_shift_nothing_but_distances():
    layer, inputs = make(length=3, rotary=RotaryEmbedding(20.0))
    outputs = to_numpy(layer(inputs))
    assert_close(to_numpy(layer(inputs, positions=np.array([[7, 8, 9]]))), outputs)
    assert not np.allclose(to_numpy(layer(inputs, positions=np.array([[0, 4, 9]]))), outputs)


def test_the_variables_have_names_that_a_layout_map_can_match():
    layer, _ = make(value_head_dim=3)
    assert {name: tuple(weight.shape) for name, weight in named_weights(layer).items()} == {
        "query/kernel": (6, 2, 4),
        "query/bias": (2, 4),
        "key/kernel": (6, 2, 4),
        "key/bias": (2, 4),
        "value/kernel": (6, 2, 3),
        "value/bias": (2, 3),
        "attention_output/kernel": (2, 3, 6),
        "attention_output/bias": (6,),
    }


@pytest.mark.parametrize("shape", [(0, 3, 6), (2, 0, 6), (1, 1, 6)])
@pytest.mark.parametrize("use_causal_mask", [False, True])
def test_an_empty_batch_and_sequences_of_one_and_none_work(shape, use_causal_mask):
    layer, _ = make(use_causal_mask=use_causal_mask)
    assert tuple(layer(np.ones(shape, "float32")).shape) == shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "`num_heads` must be a positive integer, received 0"),
        ({"chunk_size": 0}, "`chunk_size` must be a positive integer, received 0"),
        ({"epsilon": 0.0}, "`epsilon` must be a finite number above 0"),
        ({"feature_map": "cosine"}, "`feature_map` must be 'elu_plus_one', .* received 'cosine'"),
        ({"feature_map": None}, "`feature_map` must be .* received None"),
        ({"rotary": keras.layers.Dense(2)}, "`rotary` must be a `RotaryEmbedding`"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        make(**arguments)


def test_a_call_that_does_not_fit_is_refused():
    layer, inputs = make(length=3)
    with pytest.raises(InvalidInputError, match=r"`mask` must have .* \(2, 3\), received \(2, 4\)"):
        layer(inputs, mask=np.ones((2, 4), bool))
    with pytest.raises(InvalidInputError, match="but has no rotary embedding"):
        layer(inputs, positions=np.zeros((2, 3), "int32"))
    with pytest.raises(InvalidInputError, match="2 slots, received 3 tokens"):
        layer(inputs, cache=layer.make_cache(2, 2), cache_index=0)
    with pytest.raises(InvalidInputError, match="`cache` without a `cache_index`"):
        layer(inputs, cache=layer.make_cache(2, 4))
    with pytest.raises(InvalidInputError, match="needs `use_causal_mask=True`"):
        make(use_causal_mask=False)[0](inputs, cache=layer.make_cache(2, 4), cache_index=0)
    with pytest.raises(InvalidInputError, match=r"'key_value' must have the shape \(2, 2, 4, 4\)"):
        layer(inputs, cache=make(value_head_dim=3)[0].make_cache(2, 4), cache_index=0)
