import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.precision import products_in_float16


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


def test_one_in_float16_and_one_of_integers_stay():
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
