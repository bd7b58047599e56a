import importlib

import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.precision import to_bfloat16


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
