import importlib
import logging

import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.precision import (
    check_bfloat16,
    products_in_float16,
    quantize,
    to_bfloat16,
)
from keras_deepseek.errors import InvalidInputError

onnx = pytest.importorskip("onnx")

BRIEF = onnx.TensorProto.BFLOAT16


def test_float16_becomes_bfloat16_everywhere(make_graph):
    onnx = pytest.importorskip("onnx")
    half, brief = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
    kernel = np.random.default_rng(0).normal(size=(4, 3)).astype("float16")
    bits = np.array(3.0, "float16").view("uint16")  # As which the text has a number of 16 bits.
    branch = f"""branch () => (float16[] scaled)
        {{ scale = Constant <value = float16 {{{bits}}}> ()  scaled = Mul (product, scale) }}"""
    nodes = f"""half = Cast <to = {half}> (x)  product = MatMul (half, kernel)
        chosen = If (yes) <then_branch = {branch}, else_branch = {branch}>
        y = Cast <to = 1> (chosen)"""
    model = make_graph(nodes, {"kernel": kernel, "yes": np.array(True)})
    to_bfloat16(model.graph)
    onnx.checker.check_model(model, full_check=True)
    text = str(model)
    assert f"elem_type: {half}\n" not in text
    assert f"data_type: {half}\n" not in text
    assert f"i: {half}\n" not in text
    assert f"i: {brief}\n" in text
    x = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
    reference = importlib.import_module("onnx.reference")
    (received,) = reference.ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(received, 3 * x @ kernel.astype("float32"), atol=0.2)


@pytest.fixture
def in_bfloat16(make_graph):
    """Returns a function from nodes that compute `z` of `b`, in bfloat16, to a model."""

    def make(nodes, size=3):
        around = f"b = Cast <to = {BRIEF}> (x)  {nodes}  y = Cast <to = 1> (z)"
        model = make_graph(around, {}, shape=(2, 1, None), output_shape=None)
        kernel = onnx.helper.make_tensor("kernel", BRIEF, (1, 1, size), np.ones(size))
        model.graph.initializer.append(kernel)
        return model

    return make


def test_operators_with_bfloat16_pass(in_bfloat16):
    check_bfloat16(in_bfloat16("a = Mul (b, kernel)  z = Concat <axis = 0> (a, a, a)"), 25)


def test_the_opset_that_has_the_operator_is_named(in_bfloat16):
    model = in_bfloat16("z = Conv (b, kernel)")
    with pytest.raises(InvalidInputError, match=r"no Conv in bfloat16 at opset 18\. Pass opset=22"):
        check_bfloat16(model, 25)
    with pytest.raises(InvalidInputError, match=r"opset 18\. Pass precision='float16'"):
        check_bfloat16(model, 21)


def test_operators_inside_of_others_count(in_bfloat16):
    branch = "branch () => (bfloat16[] inner) { inner = Conv (b, kernel) }"
    nodes = f"""yes = Constant <value = bool {{1}}> ()
        z = If (yes) <then_branch = {branch}, else_branch = {branch}>"""
    with pytest.raises(InvalidInputError, match="no Conv in bfloat16"):
        check_bfloat16(in_bfloat16(nodes), 25)


def test_types_are_inferred_without_the_weights(in_bfloat16, monkeypatch):
    infer = onnx.shape_inference.infer_shapes
    sizes = []

    def measured(model, **options):
        sizes.append(model.ByteSize())
        return infer(model, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", measured)
    # The kernel alone says what the product is given.
    model = in_bfloat16("a = Mul (b, kernel)  z = Conv (a, kernel)", size=100_000)
    with pytest.raises(InvalidInputError, match=r"no Conv in bfloat16 at opset 18\. Pass opset=22"):
        check_bfloat16(model, 25)
    (size,) = sizes
    assert model.ByteSize() > 200_000 > 100 * size
    assert len(model.graph.initializer) == 1


def run(model, **inputs):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)


def test_a_product_in_float32_is_one_in_float16_between_casts():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnx.reference")
    model = onnx.parser.parse_model(
        """
        <ir_version: 9, opset_import: ["" : 18]>
        graph (float[N, 3] x) => (float[N, 2] y)
        <float[3, 2] w = {1.5, 2.0, -1.0, 0.5, 3.0, 0.25}>
        { p = MatMul(x, w) \n y = Softmax(p) }
        """
    )
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    (expected,) = run(model, x=x)
    converted = products_in_float16(model)
    onnx.checker.check_model(converted, full_check=True)
    operators = [node.op_type for node in converted.graph.node]
    assert operators == ["Cast", "Cast", "MatMul", "Cast", "Softmax"]
    types = onnx.shape_inference.infer_shapes(converted).graph.value_info
    product = next(node for node in converted.graph.node if node.op_type == "MatMul")
    (value_info,) = [value for value in types if value.name == product.output[0]]
    assert value_info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    # onnxruntime has no such product on a CPU, and computes in float32: ONNX's reference does not.
    (rounded,) = onnx.reference.ReferenceEvaluator(converted).run(None, {"x": x})
    for received in (*run(converted, x=x), rounded):
        assert received.dtype == np.float32
        np.testing.assert_allclose(received, expected, atol=5e-3)
    assert not np.array_equal(rounded, expected)


def test_products_of_float16_and_of_integers_stay():
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(
        """
        <ir_version: 9, opset_import: ["" : 18]>
        graph (float16[N, 3] x, int32[N, 3] i, float16[3, 3] w, int32[3, 3] v)
            => (float16[N, 3] y, int32[N, 3] j)
        { y = MatMul(x, w) \n j = MatMul(i, v) }
        """
    )
    converted = products_in_float16(model)
    assert [node.op_type for node in converted.graph.node] == ["MatMul", "MatMul"]


def test_an_input_that_is_left_out_stays_so_and_a_branch_is_changed_too():
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(
        """
        <ir_version: 9, opset_import: ["" : 18]>
        graph (bool[1] which, float[3, 3] x, float[3, 3] w) => (float[3, 3] y)
        {
            y = If (which) <
                then_branch = then_graph () => (float[3, 3] a) { a = Gemm(x, w, ) },
                else_branch = else_graph () => (float[3, 3] b) { b = MatMul(x, w) }
            >
        }
        """
    )
    converted = products_in_float16(model)
    onnx.checker.check_model(converted)
    branches = {attribute.name: attribute.g for attribute in converted.graph.node[0].attribute}
    assert [node.op_type for node in branches["then_branch"].node][-2:] == ["Gemm", "Cast"]
    assert [node.op_type for node in branches["else_branch"].node][-2:] == ["MatMul", "Cast"]
    x = np.random.default_rng(0).normal(size=(3, 3)).astype("float32")
    for which in (True, False):
        (received,) = run(converted, which=np.array([which]), x=x, w=x)
        np.testing.assert_allclose(received, x @ x, atol=1e-2)


def test_products_are_in_int8_and_near(dense, run):
    onnx = pytest.importorskip("onnx")
    generator = np.random.default_rng(2)
    batches = [{"x": generator.normal(size=(8, 4)).astype("float32")} for _ in range(4)]
    quantized = quantize(dense, batches)
    kinds = [node.op_type for node in quantized.graph.node]
    assert "QuantizeLinear" in kinds
    assert "DequantizeLinear" in kinds
    points = {
        onnx.numpy_helper.to_array(tensor).item()
        for tensor in quantized.graph.initializer
        if "zero_point" in tensor.name and not tensor.dims
    }
    assert points == {0}  # Symmetric, as TensorRT asks.
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in quantized.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and "zero_point" not in tensor.name
    ]
    # So that a processor without VNNI adds two products in 16 bits without an overflow.
    assert weights
    assert max(np.abs(weight.astype("int32")).max() for weight in weights) <= 64
    x = batches[0]["x"]
    expected = run(dense, x)
    received = run(quantized, x)
    assert 0 < np.abs(received - expected).max() < 0.05 * np.abs(expected).max()


def test_advice_to_simplify_what_is_simple_is_kept_back(dense, caplog):
    original = dense.SerializeToString()
    with caplog.at_level(logging.WARNING):
        quantized = quantize(dense, [{"x": np.ones((8, 4), "float32")}])
        logging.getLogger().warning("another")
    assert caplog.messages == ["another"]
    assert dense.SerializeToString() == original
    assert "onnx.quant.pre_process" not in {entry.key for entry in quantized.metadata_props}


def test_the_root_logger_is_left_as_it_is(dense, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # As of who set none: then Python adds one.
    filters = list(root.filters)
    quantize(dense, [{"x": np.ones((8, 4), "float32")}])
    assert root.handlers == []
    assert root.filters == filters
