import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers import DeepSeekMoE, ExpertRouter
from keras_deepseek.layers.moe import expert_dispatch
from keras_deepseek.testing import assert_close
from tests.oracles import moe
from tests.oracles.quantization import MODES, needs_blocks

NAMES = ("expert_gate", "expert_up", "expert_down")

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def make_model(mode=None, rank=None, num_experts=6, intermediate_dim=12):
    """A model of one mixture, quantized and with a LoRA of random numbers."""
    keras.utils.set_random_seed(0)
    layer = DeepSeekMoE(
        ExpertRouter(num_experts, 3, name="router"), intermediate_dim, clamp=1.0, name="moe"
    )
    model = keras.Sequential([keras.Input((None, 8)), layer])
    if mode is not None:
        model.quantize(**MODES[mode])
    if rank is not None:
        for name in NAMES:
            kernels = getattr(layer, name)
            kernels.enable_lora(rank, lora_alpha=3.0)
            kernels.lora_kernel_b.assign(0.1 * draw(*kernels.lora_kernel_b.shape))
    return model, layer


def read_kernels(kernels):
    """The kernels that the stored numbers stand for, in float64."""
    values = to_numpy(kernels.kernel)
    if kernels.quantization_mode == "int4":
        values = to_numpy(
            keras.quantizers.unpack_int4(kernels.kernel, kernels.kernel_shape[2], axis=-1)
        )
    values = values.astype("float64")
    if kernels.kernel_zero is not None:
        scale, zero = (
            np.repeat(to_numpy(x).astype("float64"), 4, axis=1)
            for x in (kernels.kernel_scale, kernels.kernel_zero)
        )
        values = (values - zero) * scale
    elif kernels.kernel_scale is not None:
        values = values / to_numpy(kernels.kernel_scale)[:, None]
    if kernels.lora_enabled:
        a, b = (
            to_numpy(x).astype("float64") for x in (kernels.lora_kernel_a, kernels.lora_kernel_b)
        )
        values = values + kernels.lora_alpha / kernels.lora_rank * a @ b
    return values


def oracle(layer, inputs):
    """The mixture in float64, whose shared experts the layer computes."""
    weights, indices = (to_numpy(x).reshape(-1, 3) for x in layer.router(inputs))
    routes = list(zip(weights, indices, strict=True))
    kernels = [read_kernels(getattr(layer, name)) for name in NAMES]
    routed = moe.mixture(inputs, routes, kernels, None, layer.clamp)
    return routed + to_numpy(layer.shared_experts(inputs))


def choose_way(monkeypatch, way):
    monkeypatch.setattr(expert_dispatch, "_LEAST_READ", 1 if way == "loads" else float("inf"))
    if way != "loads":
        monkeypatch.setattr(expert_dispatch, "choose_block_size", lambda *_: way)


@pytest.mark.parametrize("mode", MODES)
def test_an_expert_is_quantized_as_keras_quantizes_a_dense_layer(mode):
    _, layer = make_model(mode)
    _, plain = make_model()
    for kernels, floats in zip(
        *([getattr(x, n) for n in NAMES] for x in (layer, plain)), strict=True
    ):
        for index in (0, 5):
            dense = keras.layers.Dense(floats.kernel_shape[2], use_bias=False)
            dense.build((None, floats.kernel_shape[1]))
            dense.kernel.assign(to_numpy(floats.kernel)[index])
            dense.quantize(**MODES[mode])
            expected, ours = {}, {}
            dense.save_own_variables(expected)
            kernels.save_own_variables(ours)
            for key, value in ours.items():  # Of a Dense with blocks there are also their numbers.
                np.testing.assert_array_equal(to_numpy(value)[index], to_numpy(expected[key]))
        assert kernels.dtype_policy.name == dense.dtype_policy.name
    assert layer.router.quantization_mode is None


@pytest.mark.parametrize("rank", [None, 2], ids=["plain", "lora"])
@pytest.mark.parametrize("mode", [*MODES, None])
@pytest.mark.parametrize("way", ["loads", None, 1, 4])
def test_every_way_of_dispatch_computes_the_loop_over_experts(monkeypatch, way, mode, rank):
    choose_way(monkeypatch, way)
    model, layer = make_model(mode, rank)
    inputs = draw(2, 7, 8)
    assert_close(to_numpy(model(inputs)), oracle(layer, inputs))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.each_backend
def test_a_compiled_decoding_step_computes_the_same(monkeypatch, mode):
    monkeypatch.setattr(expert_dispatch, "_LEAST_READ", 1)
    monkeypatch.setattr(expert_dispatch, "_LEAST_WORK", 0)  # JAX computes blocks in a loop.
    _, layer = make_model(mode, num_experts=12)
    step = backend.current().inference.compile_with_state(
        lambda state, x: (layer(x), state), layer.variables
    )
    for length in (1, 4, 21):
        inputs = draw(1, length, 8)
        for _ in range(3):  # PyTorch records the second call.
            outputs, _ = step(None, inputs)
            assert_close(to_numpy(outputs), oracle(layer, inputs))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["loads", None, 4])
def test_gradients_are_those_of_the_kernels_that_the_numbers_stand_for(monkeypatch, way, mode):
    choose_way(monkeypatch, way)
    _, layer = make_model(mode, rank=2)
    _, plain = make_model(rank=2)
    for name in NAMES:
        kernels, floats = getattr(layer, name), getattr(plain, name)
        for variable in ("lora_kernel_a", "lora_kernel_b"):
            getattr(floats, variable).assign(getattr(kernels, variable))
        kernels.lora_enabled = False
        floats.kernel.assign(read_kernels(kernels))
        kernels.lora_enabled = True
    inputs, direction = draw(2, 7, 8), draw(2, 7, 8)[::-1]

    def differentiate(mixture):
        """The shared experts, which Keras quantizes in its own way, are left out."""

        def objective(x):
            routed = mixture(x) - mixture.shared_experts(x)
            return keras.ops.sum(keras.ops.multiply(routed, direction))

        variables = [
            variable for name in NAMES for variable in getattr(mixture, name).trainable_variables
        ]
        assert len(variables) == 6
        by_input, by_weight = backend.current().compute.compute_gradients(
            objective, [inputs], variables
        )
        return [*by_input, *by_weight]

    for ours, expected in zip(differentiate(layer), differentiate(plain), strict=True):
        assert_close(ours, expected, 1e-4)


@pytest.mark.parametrize("rank", [None, 2], ids=["plain", "lora"])
@pytest.mark.parametrize("mode", [*MODES, None])
def test_a_file_holds_the_quantized_numbers_with_the_lora_merged(tmp_path, mode, rank):
    model, layer = make_model(mode, rank)
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    inputs = draw(2, 7, 8)
    difference = np.abs(to_numpy(revived(inputs)) - to_numpy(model(inputs))).max()
    # With a LoRA the sums are rounded to integers again.
    assert difference <= {None: 1e-6, 2: 1e-5 if mode is None else 0.2}[rank]
    for name in NAMES:
        kernels = getattr(revived.layers[0], name)
        assert kernels.quantization_mode == getattr(layer, name).quantization_mode
        assert not kernels.lora_enabled
    model.load_weights(tmp_path / "model.keras")
    assert_close(to_numpy(model(inputs)), to_numpy(revived(inputs)))


def test_the_lora_of_a_quantized_mixture_is_trained_by_fit():
    model, layer = make_model("int8", rank=2)
    frozen = to_numpy(layer.expert_up.kernel)
    model.compile("adam", "mse")
    losses = model.fit(draw(16, 5, 8), draw(16, 5, 8), epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(to_numpy(layer.expert_up.kernel), frozen)


def test_a_filter_may_quantize_one_projection_alone():
    model, layer = make_model()
    model.quantize("int8", filters="expert_up")
    assert [getattr(layer, name).quantization_mode for name in NAMES] == [None, "int8", None]
    inputs = draw(2, 7, 8)
    assert_close(to_numpy(model(inputs)), oracle(layer, inputs))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (1, 1, 8)])
def test_an_empty_batch_and_one_token_work(shape, mode):
    layer = DeepSeekMoE(ExpertRouter(6, 3), 12, num_shared_experts=0)  # Keras's fail in int8.
    layer.build((None, None, 8))
    for name in NAMES:
        getattr(layer, name).quantize(**MODES[mode])
    assert layer(np.ones(shape, "float32")).shape == shape


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_it_computes_in_the_dtype_of_its_layer(dtype):
    layer = DeepSeekMoE(ExpertRouter(6, 3), 12, num_shared_experts=0, dtype=dtype)
    layer.build((None, 8))
    inputs = draw(4, 8)
    expected = to_numpy(keras.ops.cast(layer(inputs), "float32"))
    for name in NAMES:
        getattr(layer, name).quantize("int8")
    outputs = layer(inputs)
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
    assert_close(to_numpy(keras.ops.cast(outputs, "float32")), expected, 5e-2)


@needs_blocks
def test_a_block_that_does_not_divide_the_rows_is_refused():
    _, layer = make_model(intermediate_dim=20)
    with pytest.raises(InvalidInputError, match=r"the 20 rows .*moe/expert_down.*block_size=20\)"):
        layer.expert_down.quantize("int4")
    assert layer.expert_down.quantization_mode is None
    with pytest.warns(UserWarning, match="stay as they are in mode 'float8'"):
        make_model()[0].quantize("float8")


def test_a_second_lora_is_refused():
    _, layer = make_model(rank=2)
    with pytest.raises(InvalidInputError, match="has a LoRA already"):
        layer.expert_up.enable_lora(2)
