import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import ExpertRouter
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles import moe


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def perturbed_router(*args, dim=8, **kwargs):
    """A router whose bias is not zero."""
    router = ExpertRouter(*args, **kwargs)
    router.build((None, dim))
    if router.expert_bias is not None:
        rng = np.random.default_rng(1)
        router.expert_bias.assign(rng.normal(size=router.num_experts) * 0.3)
    return router


def oracle(router, inputs):
    kernel = to_numpy(router.kernel).astype("float64")
    bias = None if router.expert_bias is None else to_numpy(router.expert_bias)
    settings = router.get_config()
    weights, indices = [], []
    for token in inputs.reshape(-1, inputs.shape[-1]):
        scores, experts = moe.route(token, kernel, bias, settings)
        weights.append(moe.weigh(scores, experts, settings))
        indices.append(experts)
    shape = (*inputs.shape[:-1], router.num_experts_per_token)
    return np.reshape(weights, shape), np.reshape(indices, shape)


SETTINGS = [
    {"num_experts": 6, "num_experts_per_token": 2},
    {"num_experts": 5, "num_experts_per_token": 5, "scoring": "softmax", "routed_scale": 2.5},
    {
        "num_experts": 8,
        "num_experts_per_token": 3,
        "scoring": "softmax",
        "num_groups": 4,
        "num_groups_per_token": 2,
        "group_scoring": "max",
        "normalize_weights": False,
        "use_expert_bias": False,
    },
    {
        "num_experts": 12,
        "num_experts_per_token": 4,
        "num_groups": 3,
        "num_groups_per_token": 2,
        "routed_scale": 2.5,
    },
    {"num_experts": 7, "num_experts_per_token": 1, "scoring": "sqrt_softplus"},
]


@pytest.mark.parametrize("init_kwargs", SETTINGS)
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(init_kwargs):
    # The routine moves the kernel away from zero, on every backend by the same numbers.
    kwargs = {"kernel_initializer": "zeros", "balance_loss": 0.01, "z_loss": 0.01, **init_kwargs}
    LayerTestCase().run_layer_test(ExpertRouter, kwargs, (2, 3, 8), oracle=oracle)


@pytest.mark.parametrize("init_kwargs", SETTINGS)
def test_it_chooses_and_weighs_as_the_formula(init_kwargs):
    router = perturbed_router(**init_kwargs)
    inputs = draw(3, 11, 8)
    weights, indices = router(inputs)
    expected_weights, expected_indices = oracle(router, inputs)
    np.testing.assert_array_equal(to_numpy(indices), expected_indices)
    assert_close(to_numpy(weights), expected_weights)


def test_the_bias_chooses_and_never_weighs():
    router = ExpertRouter(4, 2, normalize_weights=False)
    inputs = draw(5, 8)
    router(inputs)
    scores = 1 / (1 + np.exp(-(inputs @ to_numpy(router.kernel))))
    router.expert_bias.assign([0.0, 50.0, 0.0, 100.0])
    weights, indices = (to_numpy(tensor) for tensor in router(inputs))
    np.testing.assert_array_equal(indices, [[3, 1]] * 5)
    assert_close(weights, scores[:, [3, 1]])


def test_among_equal_scores_it_chooses_that_many_different_experts():
    router = ExpertRouter(6, 3, kernel_initializer="zeros")
    weights, indices = (to_numpy(tensor) for tensor in router(draw(4, 8)))
    assert [len(set(row)) for row in indices] == [3] * 4
    assert_close(weights, np.full((4, 3), 1 / 3))


def test_tokens_are_routed_each_by_itself():
    router = perturbed_router(8, 2)
    inputs = draw(9, 8)
    order = np.random.default_rng(2).permutation(9)
    for output, moved in zip(router(inputs), router(inputs[order]), strict=True):
        assert_close(to_numpy(moved), to_numpy(output)[order])


def test_experts_may_be_renumbered():
    router = perturbed_router(8, 2)
    order = np.random.default_rng(2).permutation(8)
    renumbered = ExpertRouter(8, 2)
    renumbered.build((None, 8))
    renumbered.kernel.assign(to_numpy(router.kernel)[:, order])
    renumbered.expert_bias.assign(to_numpy(router.expert_bias)[order])
    inputs = draw(9, 8)
    weights, indices = (to_numpy(tensor) for tensor in router(inputs))
    other_weights, other_indices = (to_numpy(tensor) for tensor in renumbered(inputs))
    np.testing.assert_array_equal(order[other_indices], indices)
    assert_close(other_weights, weights)


def test_the_load_counts_the_tokens_of_the_last_training_step_that_the_mask_shows():
    router = perturbed_router(5, 2)
    inputs = draw(2, 6, 8)
    mask = np.arange(12).reshape(2, 6) % 3 > 0
    _, indices = router(inputs, mask=keras.ops.convert_to_tensor(mask), training=True)
    expected = np.bincount(to_numpy(indices)[mask].ravel(), minlength=5)
    np.testing.assert_array_equal(to_numpy(router.expert_load), expected)
    router(inputs[:1], training=False)
    np.testing.assert_array_equal(to_numpy(router.expert_load), expected)


def test_the_losses_are_added_in_training_alone():
    router = ExpertRouter(4, 2, balance_loss=2.0, z_loss=3.0, kernel_initializer="zeros")
    router(draw(2, 5, 8), training=False)
    assert router.losses == []
    router(draw(2, 5, 8), training=True)
    # With equal scores P is even, and the balance loss 1 whatever the choice.
    assert_close([to_numpy(loss) for loss in router.losses], [2.0, 3.0 * np.log(4) ** 2])


def test_it_chooses_in_float32_under_mixed_precision():
    full = perturbed_router(16, 2, dtype="float32")
    half = perturbed_router(16, 2, dtype="mixed_bfloat16")
    half.set_weights(full.get_weights())
    inputs = keras.ops.cast(draw(64, 8), "bfloat16")  # What rounding there is, both receive.
    _, expected = full(inputs)
    _, indices = half(inputs)
    np.testing.assert_array_equal(to_numpy(indices), to_numpy(expected))


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (1, 8)])
def test_an_empty_batch_and_one_token_work(shape):
    router = ExpertRouter(6, 2, balance_loss=0.1, z_loss=0.1)
    weights, indices = router(np.ones(shape, "float32"), training=True)
    assert tuple(weights.shape) == tuple(indices.shape) == (*shape[:-1], 2)
    assert np.isfinite([to_numpy(loss) for loss in router.losses]).all()


def test_the_variables_have_names_that_a_layout_map_can_match():
    router = ExpertRouter(6, 2, name="router")
    router.build((None, 8))
    paths = {weight.path: weight.trainable for weight in router.weights}
    assert paths == {
        "router/kernel": True,
        "router/expert_load": False,
        "router/expert_bias": False,
    }


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_experts": 0}, "`num_experts` must be a positive integer, received 0"),
        ({"num_experts_per_token": 1.5}, "`num_experts_per_token` must be a positive integer"),
        ({"num_experts_per_token": 9}, "must be at most 8, .* received 9"),
        ({"num_groups": 3}, "must divide `num_experts`, received 3 groups for 8 experts"),
        ({"num_groups_per_token": 2}, r"must be at most `num_groups` \(1\), received 2"),
        ({"num_groups": 4, "num_experts_per_token": 3}, "must be at most 2, .* received 3"),
        ({"num_groups": 8, "num_experts_per_token": 1}, "needs groups of 2 experts or more"),
        ({"scoring": "sigmod"}, "Unknown scoring 'sigmod': did you mean 'sigmoid'"),
        ({"group_scoring": "sum"}, "Unknown group_scoring 'sum'"),
        ({"balance_loss": -1.0}, "`balance_loss` must be a finite number of at least 0"),
        ({"routed_scale": float("nan")}, "`routed_scale` must be a finite number above 0"),
        ({"routed_scale": True}, "`routed_scale` must be a finite number above 0"),
        ({"scoring": ["sigmoid"]}, "Unknown scoring"),
        ({"z_loss": "x"}, "`z_loss` must be a finite number of at least 0"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        ExpertRouter(**{"num_experts": 8, "num_experts_per_token": 2, **kwargs})


@pytest.mark.parametrize("shape", [(8,), (None, 3, None)])
def test_inputs_without_a_batch_or_a_known_dim_are_refused(shape):
    with pytest.raises(InvalidInputError, match=r"needs inputs of shape \(batch_size, ..., dim\)"):
        ExpertRouter(8, 2).build(shape)
