"""Whole files: names, free axes, folding, precisions, and what can't be written."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy.onnx_writer import NoEntryError, write_program
from keras_deepseek.deploy.samples import make_samples

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def write(model, opset=18, precision=None, **options):
    named = NamedModel(model, precision)
    proto = write_program(named, make_samples(model, named.signature)[-1], opset, **options)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(proto, *arrays):
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


def check(proto, model, *arrays, tolerance=1e-5):
    """Compares the outputs of a file with those of its model."""
    inputs = arrays if len(arrays) > 1 else arrays[0]
    outputs = keras.tree.flatten(model(inputs))
    for result, tensor in zip(run(proto, *arrays), outputs, strict=True):
        expected = ops.convert_to_numpy(tensor)
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def kinds(proto):
    return sorted(node.op_type for node in proto.graph.node)


def randomize(model, seed=0):
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    return model


def test_nodes_and_free_axes_have_the_names_of_layers_and_inputs():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(7, 4, name="table")(tokens)
    model = keras.Model(tokens, layers.Dense(3, name="scores")(x))
    proto = write(model)
    assert {node.name.partition("/")[0] for node in proto.graph.node} == {"table", "scores"}
    sizes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    ]
    assert sizes == [["batch", "tokens_axis_1"], ["batch", "tokens_axis_1", 3]]
    assert [value.name for value in proto.graph.output] == ["scores"]


def test_outputs_may_be_inputs_constants_and_one_tensor_twice():
    x = keras.Input((4,), name="x")
    double = layers.Dense(4, name="double")(x)
    ones = ops.ones_like(x) * 3.0
    model = keras.Model(x, {"same": x, "first": double, "second": double, "threes": ones})
    array = np.arange(8, dtype="float32").reshape(2, 4)
    results = dict(zip(sorted(model.output), run(write(model), array), strict=True))
    np.testing.assert_array_equal(results["same"], array)
    np.testing.assert_array_equal(results["first"], results["second"])
    np.testing.assert_array_equal(results["threes"], np.full((2, 4), 3.0))


def test_equal_nodes_and_constants_are_written_once():
    table = np.arange(12, dtype="float32").reshape(4, 3)

    x = keras.Input((4,), name="x")
    both = ops.matmul(ops.exp(x), table) + ops.matmul(ops.exp(x), table.copy())
    model = keras.Model(x, both)
    proto = write(model)
    check(proto, model, np.linspace(-1, 1, 8, dtype="float32").reshape(2, 4))
    assert kinds(proto) == ["Add", "Exp", "MatMul"]
    assert len(proto.graph.initializer) == 1


def test_what_no_input_changes_is_computed_once():
    model = keras.Sequential([keras.Input((6,), name="x"), layers.Dense(5)])
    model.layers[0].enable_lora(2)
    randomize(model)
    proto = write(model)
    assert kinds(proto) == ["Add", "MatMul"]
    assert len(proto.graph.initializer) == 2
    check(proto, model, np.ones((3, 6), "float32"))
    assert len(write(model, simplified=False, fused=False).graph.node) > len(proto.graph.node)


def test_a_factor_moves_into_weights_that_nothing_else_reads():
    x = keras.Input((6,), name="x")
    hidden = layers.Dense(4, name="hidden")(x)
    scaled = ops.reshape(hidden, (-1, 2, 2)) * 0.3
    alone = randomize(keras.Model(x, scaled))
    assert kinds(write(alone)) == ["Add", "MatMul", "Reshape"]
    assert kinds(write(alone, fused=False)) == ["Add", "MatMul", "Mul", "Reshape"]
    shared = keras.Model(x, [scaled, hidden])
    array = np.linspace(-1, 1, 12, dtype="float32").reshape(2, 6)
    for model in (alone, shared):
        check(write(model), model, array)


@pytest.mark.parametrize("factor", [0.0, np.inf, 1e39])
def test_a_factor_that_would_lose_the_weights_stays(factor):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, ops.matmul(x, np.ones((4, 2), "float32")) * factor)
    proto = write(model)
    check(proto, model, np.array([[1, 2, 3, 4], [0, 0, 0, 0]], "float32"))
    assert "Mul" in kinds(proto)


def test_a_normalization_behind_a_convolution_moves_into_it():
    images = keras.Input((8, 8, 3), name="images")
    x = layers.Conv2D(4, 3, use_bias=False)(images)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3)(x))
    model = randomize(keras.Model(images, layers.GlobalAveragePooling2D()(x)))
    proto = write(model)
    assert [kind for kind in kinds(proto) if kind in ("Add", "Conv", "Mul")] == ["Conv", "Conv"]
    array = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype("float32")
    check(proto, model, array)


def test_a_loop_reads_tensors_that_are_renamed_and_merged_around_it():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(9, 4, mask_zero=True, name="table")(tokens)
    state = layers.Dense(3, name="state")(ops.mean(x, axis=1)) * 0.25
    left = layers.LSTM(3, name="left")(x, initial_state=[state, state])
    right = layers.LSTM(3, go_backwards=True, name="right")(x)
    model = randomize(keras.Model(tokens, [left, right]))
    proto = write(model)
    array = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]], "int32")
    check(proto, model, array)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_precision_is_that_of_the_layers_and_not_of_inputs_and_outputs(precision):
    images = keras.Input((4,), name="x")
    x = layers.Dense(8, activation="relu")(images)
    model = keras.Model(images, layers.Dense(2)(x))
    proto = write(model, precision=precision)
    number = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}
    assert {tensor.data_type for tensor in proto.graph.initializer} == {number[precision]}
    (value,) = proto.graph.output
    assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_a_batch_may_be_fixed():
    x = keras.Input(batch_shape=(3, 4), name="x")
    model = keras.Model(x, ops.reshape(layers.Dense(2)(x), (3 * 2,)))
    check(write(model), model, np.ones((3, 4), "float32"))


@pytest.mark.parametrize("opset", [20, 23, 25])
def test_later_opsets_compute_the_same(opset):
    x = keras.Input((None, 8), name="x")
    y = layers.RMSNormalization()(layers.LayerNormalization()(x))
    y = y + layers.MultiHeadAttention(2, 4)(y, y, use_causal_mask=True)
    model = randomize(keras.Model(x, layers.Dense(3, activation="gelu")(y)))
    proto = write(model, opset)
    assert [entry.version for entry in proto.opset_import] == [opset]
    array = np.random.default_rng(2).normal(size=(2, 5, 8)).astype("float32")
    check(proto, model, array, tolerance=2e-5)


@keras.saving.register_keras_serializable()
class Drawing(layers.Layer):
    """A layer that draws numbers at inference."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, inputs):
        return inputs + keras.random.normal((4,), seed=self.seeds)


def test_an_error_names_the_operation_and_its_layer():
    x = keras.Input((4,), name="x")
    unsupported = keras.Model(
        x, layers.Lambda(lambda y: ops.cast(ops.fft((y, y))[0], "float32"))(x)
    )
    with pytest.raises(
        NoEntryError, match=r"(operation|layer) .*can't be written as ONNX: .*entry"
    ):
        write(unsupported)
    with pytest.raises(NoEntryError, match=r"layer 'noise' \(Drawing\) .* draws random numbers"):
        write(keras.Model(x, Drawing(name="noise")(x)))
