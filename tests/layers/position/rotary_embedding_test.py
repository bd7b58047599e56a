import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import RotaryEmbedding
from keras_deepseek.layers.position.rotary_embedding import read_rotary
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.attention_layers import ATTENTIONS, DIM, make_attention
from tests.oracles.parity import check_case, make_layer, read_cases
from tests.oracles.rotary_embedding import rotary_embedding

GOLDEN = read_cases("rotary_embedding")
DYNAMIC = {"rope_type": "dynamic", "factor": 3.0, "original_max_position_embeddings": 4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def rotate(layer, inputs, **kwargs):
    return keras.ops.convert_to_numpy(layer(np.asarray(inputs, "float32"), **kwargs))


def oracle(layer, inputs):
    if isinstance(inputs, dict):
        x, positions = inputs["inputs"], inputs["positions"]
    else:
        x, positions = inputs, np.arange(inputs.shape[1])[None]
    dim = layer.rotary_dim or x.shape[-1]
    exponents = np.arange(0, dim, 2) / dim
    frequencies = layer.max_wavelength**-exponents
    return rotary_embedding(x, positions, frequencies, layer.use_interleaved_pairs)


@pytest.mark.parametrize(
    ("init_kwargs", "input_shape"),
    [
        ({}, (2, 5, 8)),
        ({"use_interleaved_pairs": True, "max_wavelength": 500.0}, (2, 5, 3, 6)),
        ({"rotary_dim": 4, "max_length": 9}, (2, 5, 3, 7)),
        ({"rotary_dim": 2, "use_interleaved_pairs": True}, (2, 5, 2, 2, 5)),
    ],
)
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(init_kwargs, input_shape):
    LayerTestCase().run_layer_test(RotaryEmbedding, init_kwargs, input_shape, oracle=oracle)


@pytest.mark.parametrize("scaling", [DYNAMIC, YARN])
def test_it_passes_the_layer_routine_with_a_scaling(scaling):
    LayerTestCase().run_layer_test(RotaryEmbedding, {"scaling": scaling}, (2, 6, 2, 8))


@pytest.mark.each_backend
def test_it_passes_the_layer_routine_with_positions_of_its_own():
    LayerTestCase().run_layer_test(
        RotaryEmbedding,
        {"use_interleaved_pairs": True},
        {"inputs": (2, 5, 3, 4), "positions": (2, 5)},
        {"inputs": "float32", "positions": "int32"},
        oracle=oracle,
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_it_rotates_as_transformers_does(name):
    check_case(make_layer(GOLDEN[name]), GOLDEN[name])


shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4))


@settings(max_examples=10)
@given(shape=shapes, start=st.integers(0, 50), interleaved=st.booleans())
def test_it_keeps_the_norm_and_follows_the_formula(shape, start, interleaved):
    *batch, pairs = shape
    inputs = np.random.default_rng(0).normal(size=(*batch, 2 * pairs))
    layer = RotaryEmbedding(use_interleaved_pairs=interleaved)
    outputs = rotate(layer, inputs, start_index=start)
    assert_close(np.linalg.norm(outputs, axis=-1), np.linalg.norm(inputs, axis=-1))
    positions = start + np.arange(batch[1])[None]
    frequencies = 10000.0 ** -(np.arange(pairs) / pairs)
    expected = rotary_embedding(inputs, positions, frequencies, interleaved)
    assert_close(outputs, expected, 5e-5)  # float32 angles of up to 55 radians


@settings(max_examples=10)
@given(start=st.integers(0, 40), distance=st.integers(0, 20), interleaved=st.booleans())
def test_the_product_of_query_and_key_depends_on_their_distance_alone(start, distance, interleaved):
    query, key = np.random.default_rng(0).normal(size=(2, 1, 1, 8))
    layer = RotaryEmbedding(use_interleaved_pairs=interleaved, scaling=YARN)

    def product(first):
        rotated = rotate(layer, query, start_index=first)
        return np.vdot(rotated, rotate(layer, key, start_index=first + distance))

    scale = np.linalg.norm(query) * np.linalg.norm(key)
    assert abs(product(start) - product(0)) < 2e-5 * scale


def test_the_start_index_may_be_a_tensor():
    layer, inputs = RotaryEmbedding(), np.ones((1, 2, 4))
    tensor = keras.ops.convert_to_tensor(3, "int32")
    whole = rotate(layer, np.ones((1, 5, 4)))
    np.testing.assert_array_equal(rotate(layer, inputs, start_index=tensor), whole[:, 3:])
    np.testing.assert_array_equal(rotate(layer, inputs, start_index=3), whole[:, 3:])


def test_positions_of_one_row_serve_the_whole_batch():
    layer, inputs = RotaryEmbedding(), np.random.default_rng(0).normal(size=(3, 2, 4))
    one_row = rotate(layer, inputs, positions=np.array([[4, 9]]))
    assert_close(one_row, rotate(layer, inputs, positions=np.array([[4, 9]] * 3)), 1e-7)


def test_a_dynamic_scaling_begins_beyond_the_trained_length():
    plain, scaled = RotaryEmbedding(), RotaryEmbedding(scaling=DYNAMIC)
    inputs = np.ones((1, 5, 8))
    np.testing.assert_array_equal(rotate(scaled, inputs[:, :4]), rotate(plain, inputs[:, :4]))
    assert np.abs(rotate(scaled, inputs) - rotate(plain, inputs)).max() > 1e-2


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_long_neighbour_changes_no_angle(kind):
    factors = {"short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]} if kind == "longrope" else {}
    layer = RotaryEmbedding(scaling=DYNAMIC | {"rope_type": kind} | factors)
    inputs = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    alone = [
        rotate(layer, inputs[row : row + 1], start_index=start) for row, start in enumerate((1, 9))
    ]
    starts = np.array([1, 9])
    positions = starts[:, None] + np.arange(3)
    for arguments in ({"start_index": starts}, {"positions": positions}):
        assert_close(rotate(layer, inputs, **arguments), np.concatenate(alone), 1e-6)


def test_what_lies_beyond_the_rotary_dim_stays():
    inputs = np.random.default_rng(0).normal(size=(1, 4, 7)).astype("float32")
    outputs = rotate(RotaryEmbedding(rotary_dim=4), inputs)
    np.testing.assert_array_equal(outputs[..., 4:], inputs[..., 4:])
    assert np.abs(outputs[:, 1:, :4] - inputs[:, 1:, :4]).min() > 0


def test_half_precision_does_not_reach_the_angles():
    inputs = np.ones((1, 1, 2), "float32")
    layer = RotaryEmbedding(dtype="bfloat16")  # 1001 is no number of bfloat16.
    outputs = keras.ops.cast(layer(inputs, start_index=1001), "float32")
    expected = [[[np.cos(1001) - np.sin(1001), np.cos(1001) + np.sin(1001)]]]
    assert_close(keras.ops.convert_to_numpy(outputs), expected, "bfloat16")


@pytest.mark.parametrize("scaling", [None, DYNAMIC])
@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (1, 1, 8)])
def test_an_empty_batch_and_a_sequence_of_one_work(shape, scaling):
    assert rotate(RotaryEmbedding(scaling=scaling), np.ones(shape)).shape == shape


@pytest.mark.parametrize("start", [2, np.int64(2)])
def test_a_sequence_beyond_the_maximal_length_is_refused(start):
    layer = RotaryEmbedding(max_length=6)
    assert rotate(layer, np.ones((1, 4, 2)), start_index=start).shape == (1, 4, 2)
    with pytest.raises(InvalidInputError, match=r"`max_length` of 6 .* 5 tokens from position 2"):
        layer(np.ones((1, 5, 2), "float32"), start_index=start)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_wavelength": 1.0}, "`max_wavelength` must be a finite number above 1, received"),
        ({"max_wavelength": "1e4"}, "`max_wavelength` must be a finite number above 1, received"),
        ({"rotary_dim": True}, "`rotary_dim` must be a positive integer, received True"),
        ({"rotary_dim": 3}, "`rotary_dim` must be an even number of entries, received 3"),
        ({"max_length": 0}, "`max_length` must be a positive integer, received 0"),
        ({"max_length": True}, "`max_length` must be a positive integer, received True"),
        ({"scaling": {"rope_type": "ntk"}}, "Unknown rope_type"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        RotaryEmbedding(**kwargs)


def test_numbers_of_numpy_are_taken_as_pythons():
    sizes = {"rotary_dim": np.int64(4), "max_length": np.int32(8)}
    config = RotaryEmbedding(np.float32(100), **sizes).get_config()
    kinds = [type(config[name]) for name in ("max_wavelength", *sizes)]
    assert kinds == [float, int, int]


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (RotaryEmbedding(), (2, 8), r"needs inputs of shape .*received \(2, 8\)"),
        (RotaryEmbedding(), (None, 3, None), "with a known dim"),
        (RotaryEmbedding(), (2, 3, 7), "must be an even number of entries, received 7"),
        (RotaryEmbedding(rotary_dim=8), (2, 3, 6), "`rotary_dim` is 8, more than the last axis"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(layer, shape, message):
    with pytest.raises(InvalidInputError, match=message):
        layer.build(shape)


@pytest.mark.parametrize(
    "positions", [np.zeros((2, 4), "int32"), np.zeros((3, 5), "int32"), np.zeros((2, 5), "float32")]
)
def test_positions_that_do_not_fit_are_refused(positions):
    with pytest.raises(InvalidInputError, match=r"`positions` must be integers .*\(2, 5\)"):
        RotaryEmbedding()(np.ones((2, 5, 4), "float32"), positions=positions)


def test_an_attention_layer_owns_a_copy_in_its_dtype():
    rotary = RotaryEmbedding(100.0, max_length=7)
    layer = keras.layers.Identity(dtype="mixed_float16")
    for argument in (rotary, keras.saving.serialize_keras_object(rotary)):
        copy = read_rotary(layer, argument)
        assert (copy.name, copy.compute_dtype) == ("rotary", "float16")
        assert (copy.max_wavelength, copy.max_length) == (100.0, 7)
    assert read_rotary(layer, rotary, dtype="float32").compute_dtype == "float32"
    assert read_rotary(layer, None) is None
    for other in (3, keras.layers.Dense(2)):
        with pytest.raises(InvalidInputError, match="`rotary` must be a `RotaryEmbedding` or None"):
            read_rotary(layer, other)
    with pytest.raises(InvalidInputError, match="must be a `RotaryEmbedding`, received None"):
        read_rotary(layer, None, is_required=True)


def test_layers_of_different_sizes_share_a_rotary_embedding():
    rotary = RotaryEmbedding()
    layers = [make_attention("LinearAttention", head_dim=dim, rotary=rotary) for dim in (4, 8)]
    tokens = np.ones((2, 5, DIM), "float32")
    assert {tuple(layer(tokens).shape) for layer in layers} == {(2, 5, DIM)}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_call_beyond_the_positions_names_the_attention_layer(name):
    layer = make_attention(name, rotary=RotaryEmbedding(max_length=4), name="attending")
    tokens = np.ones((2, 5, DIM), "float32")
    with pytest.raises(InvalidInputError, match="'attending' has a `max_length` of 4 positions"):
        layer(tokens)
    with pytest.raises(InvalidInputError, match="'attending' has a `max_length` of 4 positions"):
        layer(tokens[:, :2], cache=layer.make_cache(2, 9), cache_index=3)
