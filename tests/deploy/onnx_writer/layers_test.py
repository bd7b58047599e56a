"""Layers that a trace keeps whole, in ONNX files, beside Keras."""

import contextlib

import keras
import numpy as np
import pytest

from keras_deepseek.deploy.onnx_writer import NoEntryError
from tests.oracles.operation_case import check_operation

ops, layers = keras.ops, keras.layers
BACKEND = keras.backend.backend()
KINDS = {"LSTM": layers.LSTM, "GRU": layers.GRU, "SimpleRNN": layers.SimpleRNN}


def numbers(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def randomized(layer, *inputs, **kwargs):
    """Calls a layer, and gives it random weights."""
    output = layer(*inputs, **kwargs)
    generator = np.random.default_rng(1)
    for variable in layer.trainable_variables:
        variable.assign(generator.normal(size=variable.shape) * 0.5)
    return output


def of_layer(layer, **kwargs):
    return lambda *inputs: randomized(layer, *inputs, **kwargs)


def visible(rows=4, length=6, seed=0):
    """A mask that hides the first step of a row, the last of another, and all of a third."""
    mask = np.random.default_rng(seed).random((rows, length)) > 0.4
    mask[:, 1] = True
    mask[0, 0] = mask[1, -1] = False
    mask[2] = False
    return mask


RECURRENT = {
    "last output": {},
    "all outputs": {"return_sequences": True},
    "states": {"return_state": True, "return_sequences": True},
    "backwards": {"go_backwards": True, "return_sequences": True},
    "no bias": {"use_bias": False},
    "another activation": {"activation": "relu"},
    "an activation that ONNX has not": {"activation": "gelu", "return_sequences": True},
    "unrolled": {"unroll": True, "return_sequences": True},
    "dropout": {"dropout": 0.5},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", RECURRENT)
def test_a_recurrent_layer(case, kind):
    layer = KINDS[kind](5, **RECURRENT[case])
    free_axes = () if case == "unrolled" else (1,)
    check_operation(of_layer(layer), numbers(4, 6, 3), free_axes=free_axes)


@pytest.mark.parametrize("case", ["last output", "states", "backwards", "unrolled"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_recurrent_layer_with_a_mask(kind, case):
    layer = KINDS[kind](5, **RECURRENT[case])
    free_axes = () if case == "unrolled" else (1,)
    check_operation(
        lambda x, mask: randomized(layer, x, mask=mask),
        numbers(4, 6, 3),
        visible(),
        free_axes=free_axes,
    )


@pytest.mark.parametrize("return_sequences", [True, False], ids=["all outputs", "last output"])
def test_zeros_at_hidden_steps(return_sequences):
    layer = layers.LSTM(5, return_sequences=return_sequences, zero_output_for_mask=True)
    check_operation(
        lambda x, mask: randomized(layer, x, mask=mask), numbers(4, 6, 3), visible(), free_axes=(1,)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["tanh", "hard_sigmoid"])
def test_initial_states(activation, kind):
    layer = KINDS[kind](5, activation=activation, return_state=True)

    def function(x, state):
        count = 2 if kind == "LSTM" else 1
        return randomized(layer, x, initial_state=[state * (1 + index) for index in range(count)])

    check_operation(function, numbers(4, 6, 3), numbers(4, 5, seed=2))


@pytest.mark.skipif(
    BACKEND == "jax", reason="Keras on JAX gives the state for a hidden first output"
)
def test_an_initial_state_before_a_hidden_step():
    layer = layers.GRU(5, return_sequences=True)

    def function(x, mask, state):
        return randomized(layer, x, mask=mask, initial_state=state)

    check_operation(function, numbers(4, 6, 3), visible(), numbers(4, 5, seed=2))


def test_a_masked_layer_with_dropout():
    layer = layers.SimpleRNN(5, dropout=0.5, recurrent_dropout=0.5)
    check_operation(lambda x, mask: randomized(layer, x, mask=mask), numbers(4, 6, 3), visible())


def test_an_activity_regularizer():
    layer = layers.Dense(5, activity_regularizer="l2")
    check_operation(of_layer(layer), numbers(4, 3))


def test_a_recurrent_layer_without_reset_after():
    check_operation(of_layer(layers.GRU(5, reset_after=False)), numbers(4, 6, 3))


def test_a_recurrent_layer_in_half_precision():
    layer = layers.LSTM(
        5, dtype="float16", return_sequences=True, recurrent_initializer="glorot_uniform"
    )
    check_operation(of_layer(layer), numbers(4, 6, 3, dtype="float16"), tolerance=5e-3)


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None], ids=str)
def test_both_directions(mode):
    layer = layers.Bidirectional(layers.LSTM(5, return_sequences=True), merge_mode=mode)
    check_operation(of_layer(layer), numbers(4, 6, 3), free_axes=(1,))


def test_both_directions_with_a_mask():
    layer = layers.Bidirectional(layers.GRU(5, return_sequences=True))
    check_operation(
        lambda x, mask: randomized(layer, x, mask=mask), numbers(4, 6, 3), visible(), free_axes=(1,)
    )


@pytest.mark.parametrize("has_mask", [False, True], ids=["plain", "mask"])
def test_stacked_cells(has_mask):
    cells = [layers.LSTMCell(5), layers.GRUCell(4), layers.SimpleRNNCell(3)]
    layer = layers.RNN(cells, return_sequences=True)
    arrays = [numbers(4, 6, 3), *([visible()] if has_mask else [])]

    def function(x, mask=None):
        return randomized(layer, x, mask=mask)

    check_operation(function, *arrays, free_axes=(1,))


class Decay(keras.Layer):
    """A cell of users: a state of another size than its input, and two outputs of it."""

    def __init__(self, units):
        super().__init__()
        self.state_size, self.output_size = units, units
        self.dense = layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs, states):
        state = states[0] * 0.5 + ops.tanh(self.dense(inputs))
        return ops.softmax(state), [state]


class FromOnes(Decay):
    """A cell that begins with other numbers than zeros."""

    def get_initial_state(self, batch_size=None):
        return [ops.ones((batch_size, 5)) * ops.arange(5, dtype="float32")]


def test_a_cell_that_does_not_begin_with_zeros():
    layer = layers.RNN(FromOnes(5), return_sequences=True)
    check_operation(of_layer(layer), numbers(4, 6, 3), free_axes=(1,))


class TwoStates(Decay):
    """A cell with two states of which one is constant, and another output."""

    def __init__(self, units):
        super().__init__(units)
        self.state_size, self.output_size = [units, 1], units + 1

    def call(self, inputs, states):
        output, (state,) = super().call(inputs, states)
        ones = ops.ones((ops.shape(inputs)[0], 1))
        return ops.concatenate([output, states[1]], axis=-1), [state, ones]


class WithControlFlow(Decay):
    """A cell that chooses, and repeats what it does."""

    def call(self, inputs, states):
        output, (state,) = super().call(inputs, states)
        state = ops.fori_loop(0, 2, lambda _, value: ops.tanh(value) + output, state)
        return ops.cond(ops.sum(inputs) > 0, lambda: state, lambda: -output), [state]


CELLS = {"two states": TwoStates, "control flow": WithControlFlow, "first state": FromOnes}
USES = {
    "states": lambda cell: layers.RNN(cell, return_state=True, go_backwards=True),
    "stacked": lambda cell: layers.RNN([layers.GRUCell(4), cell], return_sequences=True),
    "at each step": lambda cell: layers.TimeDistributed(layers.RNN(cell)),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", CELLS)
def test_any_cell(kind, use):
    shape = (4, 6, 4, 3) if use == "at each step" else (4, 6, 3)
    check_operation(of_layer(USES[use](CELLS[kind](5))), numbers(*shape), free_axes=(1,))


@pytest.mark.parametrize("kind", CELLS)
def test_any_cell_with_a_mask(kind):
    layer = layers.RNN(CELLS[kind](5), return_sequences=True, return_state=True)
    check_operation(
        lambda x, mask: randomized(layer, x, mask=mask), numbers(4, 6, 3), visible(), free_axes=(1,)
    )


class ByBatch(Decay):
    """A cell that computes with the number of rows."""

    def call(self, inputs, states):
        output, (state,) = super().call(inputs, states)
        return output / ops.shape(inputs)[0], [state]


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_a_cell_of_users(backwards):
    layer = layers.RNN(Decay(5), return_sequences=True, go_backwards=backwards)
    check_operation(of_layer(layer), numbers(4, 6, 3), free_axes=(1,))


def test_a_cell_that_computes_with_the_batch_size_is_never_wrong():
    layer = layers.RNN(ByBatch(5), return_sequences=True)
    with contextlib.suppress(NoEntryError):
        check_operation(of_layer(layer), numbers(4, 6, 3))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_recurrent_convolution(rank):
    kind = (layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)[rank - 1]
    layer = kind(3, 3, padding="same", return_sequences=True)
    check_operation(of_layer(layer), numbers(3, 4, *(6, 5, 4)[:rank], 2))


def test_a_stateful_layer_is_refused():
    def function(x):
        return layers.LSTM(3, stateful=True)(x)

    x = keras.Input(batch_shape=(4, 6, 3), name="x0")
    model = keras.Model(x, function(x))
    from keras_deepseek.backend.export.named_model import NamedModel
    from keras_deepseek.deploy.onnx_writer import write_program

    with pytest.raises(NoEntryError):
        write_program(NamedModel(model), {"x0": numbers(4, 6, 3)}, 18)


class OverRows(keras.Layer):
    """A layer whose rows depend on each other."""

    def call(self, inputs):
        return inputs - ops.max(inputs, axis=0, keepdims=True)

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(lambda: layers.Dense(5, activation="relu"), id="dense"),
        pytest.param(layers.Flatten, id="flatten"),
        pytest.param(lambda: layers.Conv1D(5, 3), id="convolution"),
        pytest.param(lambda: layers.LSTM(5), id="recurrent"),
        pytest.param(
            lambda: keras.Sequential([layers.Conv1D(5, 3), layers.GlobalMaxPooling1D()]),
            id="several",
        ),
        pytest.param(OverRows, id="one that mixes rows"),
    ],
)
def test_a_layer_at_each_step(layer):
    check_operation(of_layer(layers.TimeDistributed(layer())), numbers(4, 6, 8, 3), free_axes=(1,))


@pytest.mark.parametrize(
    "layer", [lambda: layers.Conv1D(5, 2), lambda: layers.LSTM(5)], ids=["convolution", "recurrent"]
)
def test_a_layer_at_each_step_of_free_features(layer):
    layer = layers.TimeDistributed(layer())
    check_operation(of_layer(layer), numbers(4, 6, 8, 3), free_axes=(1, 2))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        pytest.param(lambda: layers.Dense(5), (4, 6), id="not used"),
        pytest.param(lambda: layers.LSTM(5), (4, 6, 8), id="of inner steps"),
    ],
)
def test_a_layer_at_each_step_with_a_mask(layer, shape):
    layer = layers.TimeDistributed(layer())
    mask = np.random.default_rng(3).random(shape) > 0.3
    check_operation(
        lambda x, mask: randomized(layer, x, mask=mask),
        numbers(4, 6, 8, 3),
        mask,
        free_axes=(1,),
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kwargs", [{}, {"padding": "same", "strides": 2}], ids=["valid", "same"])
def test_a_convolution_of_groups(kwargs, rank):
    kind = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[rank - 1]
    layer = kind(6, 3, groups=2, activation="silu", **kwargs)
    check_operation(of_layer(layer), numbers(2, *(8, 7, 6)[:rank], 4))


TRANSPOSED = {
    "valid": {},
    "same": {"padding": "same"},
    "strides": {"strides": 2},
    "same with strides": {"strides": 2, "padding": "same"},
    "strides beyond the window": {"strides": 4},
    "same with strides beyond the window": {"strides": 4, "padding": "same"},
    "even window": {"kernel_size": 4, "strides": 2, "padding": "same"},
    "even window, stride 3": {"kernel_size": 4, "strides": 3, "padding": "same"},
    "output padding": {"strides": 2, "output_padding": 1},
    "same with output padding": {"strides": 2, "output_padding": 1, "padding": "same"},
    "same with output padding of zero": {"strides": 2, "output_padding": 0, "padding": "same"},
    "even window with output padding": {
        "kernel_size": 4, "strides": 3, "output_padding": 1, "padding": "same"
    },
}  # fmt: skip


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("case", TRANSPOSED)
def test_a_transposed_convolution(case, rank):
    kind = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)[rank - 1]
    layer = kind(**{"filters": 4, "kernel_size": 3, "activation": "relu"} | TRANSPOSED[case])
    free_axes = (1,) if rank == 1 else ()
    check_operation(of_layer(layer), numbers(2, *(6, 5, 4)[:rank], 3), free_axes=free_axes)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has none with dilation on CPUs")
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_transposed_convolution_with_dilation(padding):
    layer = layers.Conv2DTranspose(4, 3, dilation_rate=2, padding=padding)
    check_operation(of_layer(layer), numbers(2, 6, 5, 3))


def squared_relu(x):
    return ops.square(ops.relu(x))


@pytest.mark.parametrize(
    "activation",
    ["mish", "hard_swish", "sparsemax", squared_relu],
    ids=["mish", "hard swish", "sparsemax", "of users"],
)
@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(layers.Activation, id="activation"),
        pytest.param(lambda a: layers.Dense(4, activation=a), id="dense"),
        pytest.param(
            lambda a: layers.EinsumDense("abc,cd->abd", (None, 4), activation=a), id="einsum"
        ),
        pytest.param(lambda a: layers.Conv1D(4, 3, activation=a), id="convolution"),
        pytest.param(lambda a: layers.DepthwiseConv1D(3, activation=a), id="depthwise"),
        pytest.param(lambda a: layers.SeparableConv1D(4, 3, activation=a), id="separable"),
        pytest.param(lambda a: layers.SimpleRNN(4, activation=a), id="recurrent"),
        pytest.param(
            lambda a: layers.TimeDistributed(layers.Dense(4, activation=a)), id="each step"
        ),
    ],
)
def test_any_activation(layer, activation):
    check_operation(of_layer(layer(activation)), numbers(3, 6, 4))


@pytest.mark.parametrize("axis", [-1, 1, (1, 2)], ids=str)
def test_a_masked_softmax(axis):
    mask = np.random.default_rng(0).random((3, 4, 5)) > 0.5
    mask[1] = False
    x = numbers(3, 4, 5)
    x[0, 0, 0] = np.inf
    mask[0, 0, 0] = False
    layer = layers.Softmax(axis=axis)
    check_operation(lambda x, mask: layer(x, mask=mask), x, mask)
    check_operation(lambda x, mask: layer(x, mask=mask), x, mask.astype("float32"))


def adapted(layer, data):
    layer.adapt(data)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(lambda: layers.Rescaling(1 / 255, offset=-0.5), id="rescaling"),
        pytest.param(lambda: layers.Rescaling([0.1, 0.2, 0.3]), id="rescaling by channel"),
        pytest.param(
            lambda: layers.Normalization(mean=[1.0, 2, 3], variance=[4.0, 0, 1]), id="given"
        ),
        pytest.param(lambda: layers.Normalization(mean=1.0, variance=2.0, axis=None), id="scalars"),
        pytest.param(
            lambda: layers.Normalization(mean=[1.0, 2, 3], variance=[4.0, 5, 1], invert=True),
            id="inverse",
        ),
        pytest.param(lambda: adapted(layers.Normalization(), numbers(9, 4, 5, 3)), id="adapted"),
        pytest.param(lambda: layers.CenterCrop(2, 3), id="crop"),
        pytest.param(lambda: layers.Resizing(8, 7), id="resizing"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_preprocessing_of_images(layer, dtype):
    layer = layer()
    images = (numbers(3, 4, 5, 3) * 90 + 99).clip(0, 255).astype(dtype)
    if isinstance(layer, layers.Resizing) and dtype == "uint8":
        pytest.skip("refused")
    check_operation(layer, images)


def test_a_crop_of_images_that_are_smaller_is_refused():
    with pytest.raises(NoEntryError, match="may be smaller"):
        check_operation(layers.CenterCrop(6, 3), numbers(3, 4, 5, 3))


def test_preprocessing_after_a_convolution():
    def function(x):
        y = randomized(layers.Conv2D(3, 3), x)
        return layers.Rescaling([0.1, 0.2, 0.3], [1.0, 2, 3])(
            layers.Normalization(mean=[1.0, 2, 3], variance=[4.0, 0, 1])(y)
        )

    check_operation(function, numbers(3, 6, 5, 2), free_axes=(1, 2), lengths=(3, 6))


@pytest.mark.parametrize("mode", ["int", "one_hot", "multi_hot", "count"])
def test_bins(mode):
    layer = layers.Discretization(bin_boundaries=[-1.0, 0, 0.5, 2], output_mode=mode)
    array = np.array([[-1, 0], [0.5, 2], [-3, 3], [-np.inf, np.inf], [0.2, -0.0]], "float32")
    check_operation(layer, array)


def test_a_bin_of_no_number():
    layer = layers.Discretization(bin_boundaries=[-1.0, 0, 0.5, 2])
    check_operation(layer, np.array([[np.nan], [0]], "float32"))


@pytest.mark.parametrize("mode", ["one_hot", "multi_hot", "count"])
@pytest.mark.parametrize("width", [1, 3])
def test_categories(width, mode):
    layer = layers.CategoryEncoding(num_tokens=5, output_mode=mode)
    array = np.random.default_rng(0).integers(0, 5, (4, width)).astype("int32")
    check_operation(layer, array)


def test_weighted_categories():
    layer = layers.CategoryEncoding(num_tokens=5, output_mode="count")
    array = np.random.default_rng(0).integers(0, 5, (4, 3)).astype("int32")
    check_operation(lambda x, w: layer(x, count_weights=w), array, numbers(4, 3))


def test_hashing_is_refused():
    with pytest.raises(NoEntryError, match="Hashing"):
        check_operation(layers.Hashing(5), np.arange(8, dtype="int32").reshape(4, 2))


def test_a_layer_of_users_with_the_name_of_one_of_keras_is_refused():
    class Rescaling(layers.Rescaling):
        def call(self, inputs):
            return super().call(inputs) * 2

    with pytest.raises(NoEntryError, match="Rescaling"):
        check_operation(Rescaling(0.5), numbers(3, 4))
