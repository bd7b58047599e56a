import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.layers import DeepSeekMoE, ExpertRouter, HashRouter
from keras_deepseek.layers.moe import expert_dispatch
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles import moe
from tests.oracles.parity import check_case, make_layer, read_cases

GOLDEN = read_cases("deepseek_moe")


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def config_of(router):
    """A config makes a router anew for each layer, as the routine needs."""
    return keras.saving.serialize_keras_object(router)


def oracle(layer, inputs):
    """The experts by float64, along the layer's own routes, which have tests of their own."""
    dim = inputs.shape[-1]
    weights, indices = (
        to_numpy(tensor).reshape(-1, layer.router.num_experts_per_token)
        for tensor in layer.router(inputs)
    )
    kernels = [
        to_numpy(kernel).astype("float64")
        for kernel in (layer.gate_kernel, layer.up_kernel, layer.down_kernel)
    ]
    shared = layer.shared_experts
    if shared is not None:
        shared = [to_numpy(dense.kernel) for dense in (shared.gate, shared.up, shared.down)]
    routes = list(zip(weights, indices, strict=True))
    return moe.mixture(inputs.reshape(-1, dim), routes, kernels, shared, layer.clamp).reshape(
        inputs.shape
    )


def fixed_router(*args, **kwargs):
    """The routine moves its kernel away from zero, on every backend by the same numbers."""
    return config_of(ExpertRouter(*args, kernel_initializer="zeros", **kwargs))


@pytest.mark.parametrize(
    ("router", "kwargs", "shape"),
    [
        # So few experts that all are computed; so many that the chosen ones are copied; a capacity.
        (fixed_router(4, 4), {"intermediate_dim": 5}, (2, 3, 5)),
        (
            fixed_router(24, 1, normalize_weights=False),
            {"intermediate_dim": 2, "clamp": 0.5},
            (2, 3, 4),
        ),
        (
            fixed_router(4, 3, balance_loss=0.1, z_loss=0.1),
            {"intermediate_dim": 3, "num_shared_experts": 0, "capacity_factor": 2.0},
            (3, 4),
        ),
    ],
)
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(router, kwargs, shape):
    kwargs = {"router": router, **kwargs}
    LayerTestCase().run_layer_test(DeepSeekMoE, kwargs, shape, oracle=oracle)


def test_it_passes_the_layer_routine_with_token_ids():
    kwargs = {"router": config_of(HashRouter(5, 2, 7)), "intermediate_dim": 3}
    shapes, dtypes = {"inputs": (2, 3, 4), "token_ids": (2, 3)}, ["float32", "int32"]
    LayerTestCase().run_layer_test(DeepSeekMoE, kwargs, shapes, dtypes)


@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_and_gradients_are_those_of_transformers(name):
    check_case(make_layer(GOLDEN[name]), GOLDEN[name])


def choose_way(monkeypatch, way):
    """By a block size, by none for all experts, or by the loads where these can be read."""
    monkeypatch.setattr(expert_dispatch, "_LEAST_READ", 1 if way == "loads" else float("inf"))
    if way != "loads":
        monkeypatch.setattr(expert_dispatch, "choose_block_size", lambda *_: way)


@pytest.mark.parametrize("way", ["loads", None, 1, 4, 64])
@pytest.mark.parametrize("shape", [(3, 8), (2, 21, 8)])
@pytest.mark.each_backend
def test_every_way_of_dispatch_computes_the_loop_over_experts(monkeypatch, way, shape):
    choose_way(monkeypatch, way)
    layer = DeepSeekMoE(ExpertRouter(6, 3), 5, clamp=1.0)
    inputs = draw(*shape)
    outputs = to_numpy(layer(inputs))
    assert_close(outputs, oracle(layer, inputs))


@pytest.mark.parametrize("shape", [(1, 2, 8), (1, 4, 8), (2, 21, 8)])
@pytest.mark.parametrize("name", ["_LEAST_READ", "_LEAST_WORK"])
def test_the_ways_without_gradients_compute_the_same(monkeypatch, name, shape):
    """By choices and by loads, or by blocks in a loop."""
    monkeypatch.setattr(expert_dispatch, "_LEAST_READ", float("inf"))
    monkeypatch.setattr(expert_dispatch, name, 1)
    layer = DeepSeekMoE(ExpertRouter(12, 3), 5, clamp=1.0)
    inputs = draw(*shape)
    layer.build(shape)
    mask = np.arange(shape[1])[None] % 3 != 0
    step = backend.current().inference.compile_with_state(
        lambda state, x, mask: (layer(x, mask=mask), state), layer.variables
    )
    looped, _ = step(None, inputs, np.broadcast_to(mask, shape[:2]))
    expected = np.where(
        mask[..., None], oracle(layer, inputs), to_numpy(layer.shared_experts(inputs))
    )
    assert_close(to_numpy(looped), expected)


@pytest.mark.parametrize("num_experts", [3, 12])
def test_a_compiled_model_computes_the_same_at_any_number_of_tokens(monkeypatch, num_experts):
    monkeypatch.setattr(expert_dispatch, "_LEAST_WORK", 0)
    layer = DeepSeekMoE(ExpertRouter(num_experts, 3), 5, num_shared_experts=0)
    inputs = keras.Input((None, 8), name="tokens")
    outputs = layer(keras.layers.Masking()(inputs))
    model = NamedModel(keras.Model(inputs, {"outputs": outputs}))
    infer = backend.current().inference.compile_inference(model)
    for shape in [(1, 1, 8), (2, 21, 8), (3, 50, 8)]:
        tokens = draw(*shape)
        assert_close(infer({"tokens": tokens})["outputs"], oracle(layer, tokens))
        hidden = infer({"tokens": np.zeros(shape, "float32")})["outputs"]  # All are padding.
        np.testing.assert_array_equal(hidden, np.zeros(shape))


def test_all_tokens_at_one_expert_are_none_too_many():
    layer = DeepSeekMoE(ExpertRouter(64, 1), 4)
    layer.build((None, 8))
    layer.router.expert_bias.assign(100.0 * np.eye(64)[17])
    inputs = draw(300, 8)
    assert_close(to_numpy(layer(inputs)), oracle(layer, inputs))


def test_a_capacity_drops_what_comes_late():
    layer = DeepSeekMoE(ExpertRouter(4, 1), 4, num_shared_experts=0, capacity_factor=1.0)
    layer.build((None, 8))
    layer.router.expert_bias.assign([0.0, 100.0, 0.0, 0.0])
    inputs = draw(12, 8)
    expected = oracle(layer, inputs)
    expected[3:] = 0.0
    assert_close(to_numpy(layer(inputs)), expected)


def test_a_capacity_that_suffices_changes_nothing():
    layer = DeepSeekMoE(ExpertRouter(4, 2), 4, capacity_factor=2.0)
    inputs = draw(2, 10, 8)
    assert_close(to_numpy(layer(inputs)), oracle(layer, inputs))


@pytest.mark.parametrize(("way", "capacity_factor"), [("loads", None), (4, None), (4, 1.0)])
@pytest.mark.parametrize("num_hidden", [9, 12])
def test_hidden_tokens_use_no_expert_and_take_nobodys_place(
    monkeypatch, way, capacity_factor, num_hidden
):
    choose_way(monkeypatch, way)
    layer = DeepSeekMoE(ExpertRouter(4, 1), 4, capacity_factor=capacity_factor)
    layer.build((None, 8))
    layer.router.expert_bias.assign([100.0, 0.0, 0.0, 0.0])
    inputs = draw(12, 8)
    mask = np.arange(12) >= num_hidden
    outputs = to_numpy(layer(inputs, mask=keras.ops.convert_to_tensor(mask)))
    assert_close(outputs[mask], oracle(layer, inputs)[mask])
    assert_close(outputs[~mask], to_numpy(layer.shared_experts(inputs))[~mask])


def test_tokens_are_computed_each_by_itself():
    layer = DeepSeekMoE(ExpertRouter(16, 2), 4)
    inputs = draw(40, 8)
    order = np.random.default_rng(2).permutation(40)
    assert_close(to_numpy(layer(inputs[order])), to_numpy(layer(inputs))[order])


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (1, 1, 8), (1, 8)])
def test_an_empty_batch_and_one_token_work(shape, capacity_factor):
    layer = DeepSeekMoE(ExpertRouter(6, 2), 4, capacity_factor=capacity_factor)
    outputs = to_numpy(layer(np.ones(shape, "float32"), training=True))
    assert outputs.shape == shape
    assert layer.router.expert_load.shape == (6,)
    assert to_numpy(layer.router.expert_load).sum() == 2 * np.prod(shape[:-1])


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("capacity_factor", [None, 1.5])
def test_a_compiled_fit_writes_the_load_of_its_last_step(jit_compile, capacity_factor):
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("torch.compile is not covered: it needs a C++ compiler.")
    inputs = keras.Input((None, 8))
    layer = DeepSeekMoE(ExpertRouter(6, 2), 4, capacity_factor=capacity_factor)
    model = keras.Model(inputs, layer(inputs))
    model.compile("adam", "mse", jit_compile=jit_compile)
    x = draw(10, 5, 8)
    model.fit(x, x, batch_size=4, epochs=2, shuffle=False, verbose=0)
    assert to_numpy(layer.router.expert_load).sum() == 2 * 5 * 2


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_every_way_of_dispatch_trains_the_same(monkeypatch, optimizer, jit_compile):
    """The gradients of kernels that were gathered or cut apart reach the optimizer whole."""
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("torch.compile is not covered: it needs a C++ compiler.")
    monkeypatch.setattr(expert_dispatch, "_LEAST_LOAD", 0)
    trained = []
    for way in (None, 4, "loads"):
        choose_way(monkeypatch, way)
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((8,)), DeepSeekMoE(ExpertRouter(6, 2), 4)])
        model.compile(keras.optimizers.get(optimizer), "mse", jit_compile=jit_compile)
        model.fit(draw(16, 8), draw(16, 8), batch_size=8, epochs=2, shuffle=False, verbose=0)
        trained.append(model.trainable_weights)
    for dense, *weights in zip(*trained, strict=True):
        for weight in weights:
            assert_close(to_numpy(weight), to_numpy(dense), 1e-4, dense.path)


def test_a_mask_in_a_model_hides_its_tokens_from_the_load():
    tokens = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    embedding = keras.layers.Embedding(5, 8, mask_zero=True)
    layer = DeepSeekMoE(ExpertRouter(6, 2), 4)
    model = keras.Sequential([keras.Input((None,), dtype="int32"), embedding, layer])
    model.compile("sgd", "mse")
    model.fit(tokens, np.zeros((2, 4, 8)), verbose=0)
    assert to_numpy(layer.router.expert_load).sum() == 3 * 2


def test_each_expert_starts_as_a_feed_forward_block_of_its_size_does():
    layer = DeepSeekMoE(ExpertRouter(50, 2), 30, kernel_initializer="he_normal")
    layer.build((None, 20))
    for kernel, fan_in in ((layer.gate_kernel, 20), (layer.down_kernel, 30)):
        assert np.std(to_numpy(kernel)) == pytest.approx(np.sqrt(2 / fan_in), rel=0.05)
    assert not np.allclose(to_numpy(layer.gate_kernel), to_numpy(layer.up_kernel))
    assert not np.allclose(to_numpy(layer.gate_kernel)[0], to_numpy(layer.gate_kernel)[1])


def test_a_model_saves_and_loads_with_its_bias(tmp_path):
    layer = DeepSeekMoE(ExpertRouter(6, 2), 4)
    model = keras.Sequential([keras.Input((8,)), layer])
    layer.router.expert_bias.assign(np.arange(6.0))
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(revived.layers[0].router.expert_bias), np.arange(6.0))
    x = draw(5, 8)
    assert_close(to_numpy(revived(x)), to_numpy(model(x)))


def test_the_variables_have_names_that_a_layout_map_can_match():
    layer = DeepSeekMoE(ExpertRouter(6, 2, name="router"), 4, name="moe")
    layer.build((None, 8))
    assert sorted(weight.path for weight in layer.weights) == [
        "moe/expert_down/kernel",
        "moe/expert_gate/kernel",
        "moe/expert_up/kernel",
        "moe/router/expert_bias",
        "moe/router/expert_load",
        "moe/router/kernel",
        "moe/shared_experts/down/kernel",
        "moe/shared_experts/gate/kernel",
        "moe/shared_experts/up/kernel",
    ]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"router": 8}, "`router` must be an `ExpertRouter`, received 8"),
        ({"intermediate_dim": 0}, "`intermediate_dim` must be a positive integer, received 0"),
        ({"num_shared_experts": -1}, "`num_shared_experts` must be an integer of at least 0"),
        ({"clamp": 0.0}, "`clamp` must be a finite number above 0"),
        (
            {"capacity_factor": True},
            "`capacity_factor` must be a finite number above 0, received True",
        ),
        ({"capacity_factor": float("inf")}, "`capacity_factor` must be a finite number above 0"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        DeepSeekMoE(**{"router": ExpertRouter(8, 2), "intermediate_dim": 4, **kwargs})


@pytest.mark.parametrize("shape", [(8,), (None, 3, None)])
def test_inputs_without_a_batch_or_a_known_dim_are_refused(shape):
    with pytest.raises(InvalidInputError, match=r"needs inputs of shape \(batch_size, ..., dim\)"):
        DeepSeekMoE(ExpertRouter(8, 2), 4).build(shape)


@pytest.mark.parametrize("router_class", [ExpertRouter, HashRouter])
def test_the_mask_of_the_inputs_counts_beside_token_ids(router_class):
    """Keras fills in the mask of the first of several tensors under another name."""
    vocabulary = {"vocabulary_size": 20} if router_class is HashRouter else {}
    layer = DeepSeekMoE(router_class(4, 1, **vocabulary), 3)
    token_ids = np.array([[0, 0, 5, 6], [0, 7, 8, 9]])
    embedding = keras.layers.Embedding(20, 8, mask_zero=True)
    layer(embedding(token_ids), token_ids, training=True)
    assert to_numpy(layer.router.expert_load).sum() == 5


@pytest.mark.parametrize("name", ["mask", "token_ids"])
def test_what_is_not_of_the_tokens_is_refused(name):
    layer = DeepSeekMoE(ExpertRouter(4, 1), 3)
    with pytest.raises(InvalidInputError, match=f"`{name}` must have one entry"):
        layer(draw(1, 5, 8), **{name: np.ones((1, 1), "int32")})


def test_a_router_is_that_of_one_mixture():
    router = ExpertRouter(4, 2)
    DeepSeekMoE(router, 6, name="first")
    with pytest.raises(InvalidInputError, match="already belongs to 'first'"):
        DeepSeekMoE(router, 6)
