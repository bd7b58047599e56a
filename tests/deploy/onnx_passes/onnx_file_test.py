import importlib

import numpy as np
import pytest

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.deploy.onnx_passes import onnx_file as module
from keras_deepseek.deploy.onnx_passes.onnx_file import (
    check_names,
    rename,
    save,
)
from keras_deepseek.errors import InvalidInputError


@pytest.mark.parametrize(("largest", "files"), [(10**9, 1), (1_000, 2)])
def test_weights_that_one_file_can_not_hold_stand_beside_it(
    make_graph, tmp_path, monkeypatch, largest, files
):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(module, "LARGEST_FILE", largest)
    kernel = np.random.default_rng(0).normal(size=(4, 300)).astype("float32")
    graph = make_graph("y = MatMul (x, kernel)", {"kernel": kernel}, output_shape=(None, 300))
    save(graph, tmp_path / "model.onnx")
    expected = ["model.onnx", "model.onnx.data"][:files]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    x = np.ones((2, 4), "float32")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ kernel, rtol=1e-5)


def test_a_file_holds_all_of_a_model(make_graph, tmp_path):
    onnx = pytest.importorskip("onnx")
    kernel = np.random.default_rng(0).normal(size=(4, 300)).astype("float32")
    empty = np.zeros((0, 4), "float32")
    graph = make_graph("y = MatMul (x, kernel)", {"kernel": kernel, "empty": empty})
    graph.producer_name = "keras_deepseek"
    graph.metadata_props.add(key="name", value="digits")
    graph.graph.doc_string = "A graph."
    save(graph, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == graph


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
    rename(model.graph, signature)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (received,) = session.run(["score"], {"two": np.ones((3, 2), "float32")})
    np.testing.assert_array_equal(received, np.full((3, 2), -2.0))


def test_an_input_that_is_an_output_too_has_both_names(make_graph):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = make_graph("y = Neg (x)", {}, output_shape=(None, 4))
    for name in ("x", "y"):
        copy = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (None, 4))
        model.graph.output.append(copy)
    specs = [TensorSpec(name, (None, 4), "float32") for name in ("given", "a", "b", "c")]
    rename(model.graph, Signature(tuple(specs[:1]), tuple(specs[1:])))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.ones((2, 4), "float32")
    a, b, c = session.run(["a", "b", "c"], {"given": x})
    np.testing.assert_array_equal(b, x)
    np.testing.assert_array_equal(a, -x)
    np.testing.assert_array_equal(c, -x)


def test_an_output_of_an_inputs_name_is_refused():
    """Two tensors of one name make a graph that goes round in circles."""
    same, other = (TensorSpec(name, (None, 4), "float32") for name in ("score", "other"))
    with pytest.raises(InvalidInputError, match="of an input and of an output: score"):
        check_names(Signature((same,), (other, same)))
    check_names(Signature((same,), (other,)))
