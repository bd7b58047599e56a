import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import LightningIndexer, RotaryEmbedding
from keras_deepseek.layers.position.rotary_scaling import compute_frequencies
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.lightning_indexer import chosen_keys, index_scores
from tests.oracles.parity import named_weights
from tests.oracles.precisions import PRECISIONS

SIZES = {"num_heads": 3, "head_dim": 6, "rotary": RotaryEmbedding(rotary_dim=4)}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def draw(*shape, dtype="float32"):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def score(layer, *args, **kwargs):
    return keras.ops.convert_to_numpy(layer.score_keys(*layer(*args, **kwargs)))


def oracle(layer, inputs, queries=None):
    rotation = compute_frequencies(
        layer.rotary.rotary_dim, layer.rotary.max_wavelength, layer.rotary.scaling
    )
    weights = {name: keras.ops.convert_to_numpy(w) for name, w in named_weights(layer).items()}
    return index_scores(
        inputs,
        inputs if queries is None else queries,
        weights,
        rotation.base,
        rotation.amplitude,
        layer.epsilon,
    )


@pytest.mark.each_backend
def test_it_passes_the_layer_routine():
    LayerTestCase().run_layer_test(
        LightningIndexer,
        {**SIZES, "kernel_initializer": "he_normal", "epsilon": 1e-3},
        {"inputs": (2, 4, 5), "queries": (2, 4, 3)},
    )


@pytest.mark.each_backend
def test_it_passes_some_of_the_routine_with_one_input_and_yarn():
    arguments = {**SIZES, "rotary": RotaryEmbedding(100.0, rotary_dim=4, scaling=YARN)}
    case = LayerTestCase()
    subject = case.make_subject(LightningIndexer, arguments, (2, 4, 5))
    case.check_config(subject)
    case.check_execution(subject)
    case.check_masking(subject)


@settings(max_examples=3)
@given(
    length=st.integers(1, 6),
    num_heads=st.integers(1, 3),
    half_rope=st.integers(1, 2),
    more=st.integers(0, 3),
    compresses=st.booleans(),
)
def test_the_scores_are_those_of_the_formula(length, num_heads, half_rope, more, compresses):
    layer = LightningIndexer(
        num_heads,
        head_dim=2 * half_rope + more,
        rotary=RotaryEmbedding(rotary_dim=2 * half_rope, scaling=YARN),
    )
    arguments = [draw(2, length, 5), draw(2, length, 3)][: 1 + compresses]
    scores = score(layer, *arguments)
    assert_close(scores, oracle(layer, *arguments))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_scores_are_in_the_precision_of_queries_and_keys(dtype):
    shapes = ((2, 3, 4, 5), (2, 3, 4), (2, 6, 5))
    query, weights, key = (draw(*shape, dtype=dtype) for shape in shapes)
    tensors = [keras.ops.convert_to_tensor(x) for x in (query, weights, key)]
    scores = keras.ops.convert_to_numpy(LightningIndexer(**SIZES).score_keys(*tensors))
    products = np.maximum(np.einsum("bthd,bsd->bths", query, key), 0)
    assert scores.dtype == dtype
    assert_close(scores, np.einsum("bths,bth->bts", products, weights), dtype)


def test_scores_are_in_float32_whatever_the_policy():
    layer = LightningIndexer(**SIZES, dtype="bfloat16")
    scores = layer.score_keys(*layer(draw(1, 4, 5)))
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"


def test_positions_shift_nothing_but_distances():
    layer, inputs = LightningIndexer(**SIZES), draw(1, 3, 5)
    scores = score(layer, inputs)
    assert_close(score(layer, inputs, positions=np.array([[7, 8, 9]])), scores)
    assert_close(score(layer, inputs, start_index=5), scores)
    spread = score(layer, inputs, positions=np.array([[0, 4, 9]]))
    assert np.abs(spread - scores).max() > 1e-3


def test_the_best_of_the_visible_keys_are_chosen_and_no_others():
    scores = np.random.default_rng(0).permutation(2 * 4 * 6).reshape(2, 4, 6).astype("float32")
    visible = np.tri(4, 6, 1, dtype=bool) & np.array([True, True, True, True, True, False])
    visible = np.stack([visible, np.zeros_like(visible)])
    layer = LightningIndexer(**SIZES)
    results = layer.choose_keys(keras.ops.convert_to_tensor(scores), visible, 3)
    indices, values, is_chosen = map(keras.ops.convert_to_numpy, results)
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, indices, is_chosen, axis=-1)
    np.testing.assert_array_equal(chosen, chosen_keys(scores, visible, 3)[0])
    np.testing.assert_array_equal(is_chosen.sum(axis=-1), [[2, 3, 3, 3], [0, 0, 0, 0]])
    chosen_scores = np.take_along_axis(scores, indices, axis=-1)
    np.testing.assert_array_equal(values[is_chosen], chosen_scores[is_chosen])


def test_without_a_mask_all_keys_may_be_chosen():
    scores = keras.ops.reshape(keras.ops.arange(5, dtype="float32"), (1, 1, 5))
    indices, _, is_chosen = LightningIndexer(**SIZES).choose_keys(scores, None, 2)
    assert sorted(keras.ops.convert_to_numpy(indices).ravel()) == [3, 4]
    assert keras.ops.convert_to_numpy(is_chosen).all()


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (1, 1, 5)])
def test_an_empty_batch_and_a_sequence_of_one_work(shape):
    assert score(LightningIndexer(**SIZES), draw(*shape)).shape == (*shape[:2], shape[1])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 0}, "`num_heads` must be a positive integer, received 0"),
        ({"head_dim": 2.5}, "`head_dim` must be a positive integer"),
        ({"rotary": 4}, "`rotary` must be a `RotaryEmbedding` or None, received 4"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        LightningIndexer(**{**SIZES, **kwargs})


def test_without_a_rotary_embedding_positions_are_refused():
    layer, inputs = LightningIndexer(**{**SIZES, "rotary": None}), draw(1, 3, 5)
    query, weights, key = map(keras.ops.convert_to_numpy, layer(inputs))
    expected = inputs @ keras.ops.convert_to_numpy(layer.key.kernel)
    assert_close(key, keras.ops.convert_to_numpy(layer.key_norm(expected)))
    assert (query.shape, weights.shape) == ((1, 3, 3, 6), (1, 3, 3))
    with pytest.raises(InvalidInputError, match="received `positions`, but has no rotary"):
        layer(inputs, positions=np.array([[7, 8, 9]]))


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 4, 6), (2, 3, None)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidInputError, match=r"needs inputs of shape \(batch_size, length, dim"):
        LightningIndexer(**SIZES).build(shape)


@pytest.mark.parametrize("shape", [(2, 4, 3), (1, 5, 3)])
def test_queries_of_other_tokens_are_refused(shape):
    layer = LightningIndexer(**SIZES)
    layer.build((None, None, 6), (None, None, 3))
    for make in (keras.KerasTensor, np.ones):
        with pytest.raises(InvalidInputError, match=r"needs `queries` .* \(2, 5, None\); received"):
            layer(make((2, 5, 6)), make(shape))
