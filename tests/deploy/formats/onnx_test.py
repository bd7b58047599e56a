import importlib.util

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.errors import InvalidInputError, MissingExtraError, NotSupportedError
from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend.named_model import NamedModel
from keras_deepseek.deploy.formats import onnx as onnx_format
from keras_deepseek.deploy.formats.onnx import OnnxFormat

IN_TENSORFLOW = keras.backend.backend() == "tensorflow"


@pytest.mark.skipif(not IN_TENSORFLOW, reason="only TensorFlow writes ONNX")
@pytest.mark.parametrize("opset", [13, 18])
def test_names_and_free_axes_are_the_models(digits, tmp_path, opset):
    import onnx

    OnnxFormat(opset).write(NamedModel(digits), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    (value,) = graph.input
    assert value.name == "image"
    assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [output.name for output in graph.output] == ["probabilities"]


@pytest.mark.skipif(IN_TENSORFLOW, reason="TensorFlow writes it")
def test_other_backends_pass_it_on(digits, tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(NotSupportedError):
        OnnxFormat().write(NamedModel(digits), tmp_path)


@pytest.mark.parametrize("opset", [0, -1, 7, 99, "18", True, None])
def test_an_opset_that_can_not_be_written_is_refused(opset):
    with pytest.raises(InvalidInputError, match="from 13 to 18"):
        OnnxFormat(opset)


def test_without_onnx_the_extra_is_named(digits, tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(onnx_format.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[onnx\]"):
        OnnxFormat().write(NamedModel(digits), tmp_path)


def test_a_renamed_graph_computes_the_same_with_clashing_names(tmp_path):
    """The output takes a name that a tensor inside the graph has already."""
    helper = pytest.importorskip("onnx.helper")
    onnx, onnxruntime = (
        importlib.import_module("onnx"),
        pytest.importorskip("onnxruntime"),
    )
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Neg", ["x:0"], ["score"]),
            helper.make_node("Mul", ["score", "two"], ["Identity:0"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x:0", floats, [None, 2])],
        [helper.make_tensor_value_info("Identity:0", floats, [None, 2])],
        [helper.make_tensor("two", floats, [], [2.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    signature = Signature(
        (TensorSpec("two", (None, 2), "float32"),), (TensorSpec("score", (None, 2), "float32"),)
    )
    onnx_format._rename(model.graph, signature)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (received,) = session.run(["score"], {"two": np.ones((3, 2), "float32")})
    np.testing.assert_array_equal(received, np.full((3, 2), -2.0))
