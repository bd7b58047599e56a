import logging

import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes import onnx_file as module
from keras_deepseek.deploy.onnx_passes.onnx_file import simplify


def test_what_does_nothing_is_left_out(make_graph, run):
    pytest.importorskip("onnxslim")
    nodes = "same = Identity (x)  two = Add (one, one)  y = Mul (same, two)"
    model = make_graph(nodes, {"one": np.ones((), "float32")}, output_shape=(None, 4))
    simple = simplify(model)
    assert [node.op_type for node in simple.graph.node] == ["Mul"]
    assert len(model.graph.node) == 3
    x = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    np.testing.assert_array_equal(run(simple, x), run(model, x))


def test_a_graph_that_can_not_be_simplified_is_left_as_it_was(dense, monkeypatch, caplog):
    class Slim:
        @staticmethod
        def slim(model):
            raise RuntimeError("no")

    real = module.import_package
    monkeypatch.setattr(
        module, "import_package", lambda name: Slim if name == "onnxslim" else real(name)
    )
    with caplog.at_level(logging.WARNING):
        assert simplify(dense) is dense
    assert "because onnxslim failed: no" in caplog.text


def test_an_input_that_nothing_reads_stays(make_graph, run):
    pytest.importorskip("onnxslim")
    from onnx import TensorProto, helper

    model = make_graph("y = Neg (x)", {}, output_shape=(None, 4))
    unread = helper.make_tensor_value_info("unread", TensorProto.FLOAT, ["batch", 2])
    model.graph.input.insert(0, unread)
    simple = simplify(model)
    assert [value.name for value in simple.graph.input] == ["unread", "x"]
