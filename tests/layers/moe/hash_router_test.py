import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import DeepSeekMoE, HashRouter
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles import moe


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def oracle(router, inputs):
    kernel = to_numpy(router.kernel).astype("float64")
    experts = to_numpy(router.token_to_experts)[inputs["token_ids"]]
    weights = np.zeros(experts.shape)
    for index in np.ndindex(experts.shape[:-1]):
        scores = moe.SCORINGS[router.scoring](inputs["inputs"][index] @ kernel)
        weights[index] = moe.weigh(scores, experts[index], router.get_config())
    return weights, experts


@pytest.mark.parametrize(
    "init_kwargs",
    [
        {"num_experts": 6, "num_experts_per_token": 2, "vocabulary_size": 5, "seed": 3},
        {
            "num_experts": 4,
            "num_experts_per_token": 4,
            "vocabulary_size": 3,
            "scoring": "sigmoid",
            "normalize_weights": False,
            "routed_scale": 1.5,
        },
    ],
)
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(init_kwargs):
    shapes, dtypes = {"inputs": (2, 3, 6), "token_ids": (2, 3)}, ["float32", "int32"]
    LayerTestCase().run_layer_test(HashRouter, init_kwargs, shapes, dtypes, oracle=oracle)


@pytest.mark.parametrize(("num_experts", "per_token"), [(8, 2), (7, 3), (5, 5), (6, 1)])
def test_the_table_gives_each_token_different_experts_and_all_experts_their_share(
    num_experts, per_token
):
    router = HashRouter(num_experts, per_token, 1000)
    router.build((None, 4))
    table = to_numpy(router.token_to_experts)
    assert table.shape == (1000, per_token)
    assert all(len(set(row)) == per_token for row in table)
    share = np.bincount(table.ravel(), minlength=num_experts) / table.size
    np.testing.assert_allclose(share, 1 / num_experts, rtol=0.1)


def test_a_seed_gives_its_own_table():
    tables = []
    for seed in (0, 0, 1):
        router = HashRouter(8, 2, 50, seed=seed)
        router.build((None, 4))
        tables.append(to_numpy(router.token_to_experts))
    np.testing.assert_array_equal(tables[0], tables[1])
    assert (tables[0] != tables[2]).any()


def test_the_load_is_counted():
    router = HashRouter(6, 2, 5)
    token_ids = np.array([[0, 1, 4], [4, 4, 2]])
    router(draw(2, 3, 8), token_ids, training=True)
    chosen = to_numpy(router.token_to_experts)[token_ids]
    expected = np.bincount(chosen.ravel(), minlength=6)
    np.testing.assert_array_equal(to_numpy(router.expert_load), expected)


def test_the_inputs_weigh_and_the_tokens_choose():
    router = HashRouter(6, 2, 5)
    token_ids = np.full((1, 3), 2)
    weights, indices = (to_numpy(tensor) for tensor in router(draw(1, 3, 8), token_ids))
    assert len(np.unique(indices, axis=1)[0]) == 1
    assert len(np.unique(weights[0, :, 0])) == 3
    assert_close(weights.sum(-1), np.ones((1, 3)))


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("token_id", [-1, 5, 500])
def test_a_token_outside_of_the_vocabulary_shows(token_id, is_compiled):
    router, inputs = HashRouter(6, 2, 5), draw(1, 3, 8)
    token_ids = np.array([[4, token_id, 0]])
    if is_compiled:
        tensors = keras.Input((3, 8)), keras.Input((3,), dtype="int32")
        model = keras.Model(tensors, router(*tensors))
        weights, indices = model.predict([inputs, token_ids], verbose=0)
    else:
        weights, indices = (to_numpy(tensor) for tensor in router(inputs, token_ids))
    assert np.isnan(weights).tolist() == [[[False] * 2, [True] * 2, [False] * 2]]
    np.testing.assert_array_equal(indices[0, 1], indices[0, 2])


def test_a_vocabulary_of_bytes_is_indexed_by_bytes():
    router, token_ids = HashRouter(6, 2, 256), np.array([[0, 255]], "uint8")
    weights, indices = (to_numpy(tensor) for tensor in router(draw(1, 2, 8), token_ids))
    assert np.isfinite(weights).all()
    np.testing.assert_array_equal(indices[0], to_numpy(router.token_to_experts)[[0, 255]])


@pytest.mark.parametrize("num_tokens", [1, 200])
def test_the_number_of_a_hidden_token_does_not_matter(num_tokens):
    layer = DeepSeekMoE(HashRouter(6, 2, 5), 4, num_shared_experts=0)
    inputs, mask = draw(num_tokens, 2, 8), np.array([[True, False]] * num_tokens)
    token_ids = np.array([[3, -100]] * num_tokens)
    outputs = to_numpy(layer(inputs, token_ids, mask=mask))
    assert np.isfinite(outputs).all()
    assert not outputs[:, 1].any()


def test_a_call_without_token_ids_is_refused():
    with pytest.raises(InvalidInputError, match="needs `token_ids`, received None"):
        HashRouter(6, 2, 5)(draw(1, 3, 8))


@pytest.mark.parametrize("vocabulary_size", [0, 2.5, None])
def test_a_vocabulary_that_is_no_size_is_refused(vocabulary_size):
    with pytest.raises(InvalidInputError, match="`vocabulary_size` must be a positive integer"):
        HashRouter(6, 2, vocabulary_size)


@pytest.mark.parametrize("seed", [-1, 0.5, None, True])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(InvalidInputError, match="`seed` must be an integer of at least 0"):
        HashRouter(6, 2, 5, seed=seed)
