import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import SwiGLU
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.swiglu import swiglu


def oracle(layer, inputs):
    projections = [
        (
            keras.ops.convert_to_numpy(dense.kernel).astype("float64"),
            keras.ops.convert_to_numpy(dense.bias) if dense.use_bias else 0.0,
        )
        for dense in (layer.gate, layer.up, layer.down)
    ]
    return swiglu(inputs, *projections, clamp=layer.clamp)


@pytest.mark.parametrize(
    ("init_kwargs", "input_shape"),
    [
        ({"intermediate_dim": 16}, (2, 3, 8)),
        ({"intermediate_dim": 5, "use_bias": True, "clamp": 0.5}, (2, 3, 7)),
        ({"intermediate_dim": 4, "clamp": 10.0, "kernel_initializer": "he_normal"}, (3, 6)),
        ({"intermediate_dim": 3, "bias_initializer": "ones", "use_bias": True}, (2, 2, 3, 4)),
    ],
)
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(init_kwargs, input_shape):
    LayerTestCase().run_layer_test(SwiGLU, init_kwargs, input_shape, oracle=oracle)


@settings(max_examples=6)
@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple),
    intermediate_dim=st.integers(1, 6),
    clamp=st.none() | st.floats(0.1, 3.0),
)
def test_it_computes_the_formula_at_any_shape(shape, intermediate_dim, clamp):
    layer = SwiGLU(intermediate_dim, clamp=clamp)
    inputs = np.random.default_rng(0).normal(size=shape).astype("float32")
    outputs = keras.ops.convert_to_numpy(layer(inputs))
    assert_close(outputs, oracle(layer, inputs))


def test_the_clamp_bounds_what_no_weight_can():
    layer = SwiGLU(4, clamp=2.0, kernel_initializer="ones")
    outputs = keras.ops.convert_to_numpy(layer(np.full((1, 8), 1e4, "float32")))
    silu_of_two = 2 / (1 + np.exp(-2))
    assert_close(outputs, np.full((1, 8), 4 * silu_of_two * 2))


def test_the_clamp_leaves_the_gate_free_below():
    layer = SwiGLU(1, clamp=2.0, kernel_initializer="ones")
    z = -5.0
    outputs = keras.ops.convert_to_numpy(layer(np.full((1, 1), z, "float32")))
    assert_close(outputs, [[z / (1 + np.exp(-z)) * -2.0]])


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (1, 1, 8)])
def test_an_empty_batch_and_a_sequence_of_one_work(shape):
    outputs = SwiGLU(16)(np.ones(shape, "float32"))
    assert tuple(outputs.shape) == shape


def test_the_projections_do_not_start_equal():
    layer = SwiGLU(8, kernel_initializer=keras.initializers.GlorotUniform())
    layer.build((None, 8))
    gate, up = (keras.ops.convert_to_numpy(dense.kernel) for dense in (layer.gate, layer.up))
    assert not np.allclose(gate, up)


def test_a_plain_function_may_initialize():
    def halves(shape, dtype=None):
        return keras.ops.full(shape, 0.5, dtype=dtype)

    layer = SwiGLU(8, kernel_initializer=halves)
    layer.build((None, 4))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.up.kernel), 0.5)


def test_the_variables_have_names_that_a_layout_map_can_match():
    layer = SwiGLU(4, use_bias=True, name="mlp")
    layer.build((None, 8))
    assert [weight.path for weight in layer.weights] == [
        f"mlp/{projection}/{weight}"
        for projection in ("gate", "up", "down")
        for weight in ("kernel", "bias")
    ]


def test_a_model_with_lora_on_its_projections_saves_and_loads(tmp_path):
    inputs = keras.Input((8,))
    layer = SwiGLU(4)
    model = keras.Model(inputs, layer(inputs))
    for projection in (layer.gate, layer.up, layer.down):
        projection.enable_lora(2)
        projection.lora_kernel_b.assign(np.ones(projection.lora_kernel_b.shape))
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    x = np.ones((2, 8), "float32")
    assert_close(keras.ops.convert_to_numpy(revived(x)), keras.ops.convert_to_numpy(model(x)))


@pytest.mark.parametrize("intermediate_dim", [0, -3, 2.5, None])
def test_an_intermediate_dim_that_is_no_size_is_refused(intermediate_dim):
    with pytest.raises(InvalidInputError, match="`intermediate_dim` must be a positive integer"):
        SwiGLU(intermediate_dim)


@pytest.mark.parametrize("clamp", [0, -1.0, float("nan"), float("inf"), "10", True])
def test_a_clamp_that_is_no_bound_is_refused(clamp):
    with pytest.raises(InvalidInputError, match="`clamp` must be a finite number above 0"):
        SwiGLU(4, clamp=clamp)


def test_numbers_of_numpy_are_taken_as_pythons():
    config = SwiGLU(np.int64(4), clamp=np.float32(2)).get_config()
    assert (type(config["intermediate_dim"]), type(config["clamp"])) == (int, float)


def test_inputs_of_rank_one_are_refused():
    with pytest.raises(InvalidInputError, match=r"needs inputs of shape .*received \(8,\)"):
        SwiGLU(4).build((8,))


def test_a_last_axis_of_unknown_size_is_refused():
    with pytest.raises(InvalidInputError, match=r"with a known dim, received \(None, 3, None\)"):
        SwiGLU(4)(keras.Input((3, None)))
