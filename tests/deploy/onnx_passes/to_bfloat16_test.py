import importlib

import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.to_bfloat16 import to_bfloat16


def test_float16_becomes_bfloat16_everywhere(make_graph):
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    half, brief = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
    kernel = np.random.default_rng(0).normal(size=(4, 3)).astype("float16")
    scale = onnx.numpy_helper.from_array(np.array(3.0, "float16"), "scale")
    branch = helper.make_graph(
        [
            helper.make_node("Constant", [], ["scale"], value=scale),
            helper.make_node("Mul", ["product", "scale"], ["scaled"]),
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("scaled", half, None)],
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=half),
        helper.make_node("MatMul", ["half", "kernel"], ["product"]),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch),
        helper.make_node("Cast", ["chosen"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
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
