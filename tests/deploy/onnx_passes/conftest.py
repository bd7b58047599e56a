"""Small ONNX graphs, written by hand: these passes know nothing of Keras."""

import numpy as np
import pytest


@pytest.fixture
def make_graph():
    """Returns a function from nodes and weights to a model with input `x` and output `y`."""
    helper = pytest.importorskip("onnx.helper")
    pytest.importorskip("onnxruntime")
    import onnx

    def make(nodes, weights, shape=(None, 4), output_shape=(None, 3), dtype=onnx.TensorProto.FLOAT):
        graph = helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", dtype, output_shape)],
            [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

    return make


@pytest.fixture
def dense(make_graph):
    """A product, a sum and a rectifier."""
    from onnx import helper

    generator = np.random.default_rng(0)
    weights = {
        "kernel": generator.normal(size=(4, 3)).astype("float32"),
        "bias": generator.normal(size=3).astype("float32"),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "kernel"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
    ]
    return make_graph(nodes, weights)


@pytest.fixture
def run():
    """Returns a function that runs a model on an array."""
    onnxruntime = pytest.importorskip("onnxruntime")

    def run_model(model, x):
        session = onnxruntime.InferenceSession(model.SerializeToString())
        return session.run(None, {"x": x})[0]

    return run_model
