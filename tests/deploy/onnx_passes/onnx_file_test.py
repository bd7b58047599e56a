import importlib
import logging

import numpy as np
import pytest

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.deploy.onnx_passes import onnx_file as module
from keras_deepseek.deploy.onnx_passes.onnx_file import (
    check_names,
    check_operators,
    is_on_disk,
    load,
    raise_opset,
    rename,
    save,
    simplify,
)
from keras_deepseek.errors import ExportError, InvalidInputError


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


def test_large_weights_stay_on_disk_and_small_ones_are_read(make_graph, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(module, "LARGEST_FILE", 1_000)
    monkeypatch.setattr(module, "_LEAST_BESIDE", 4_000)
    path = tmp_path / "model.onnx"
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(4, 300)).astype("float32")
    bias = generator.normal(size=300).astype("float32")
    nodes = "product = MatMul (x, kernel)  y = Add (product, bias)"
    graph = make_graph(nodes, {"kernel": kernel, "bias": bias}, output_shape=(None, 300))
    save(graph, path)
    read, is_large = load(path)
    assert is_large
    assert {tensor.name: is_on_disk(tensor) for tensor in read.graph.initializer} == {
        "kernel": True,
        "bias": False,
    }
    read.graph.node[1].op_type = "Sub"
    save(read, path)
    x = np.ones((2, 4), "float32")
    session = onnxruntime.InferenceSession(path)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ kernel - bias, rtol=1e-4)


def test_small_weights_are_read_whole(make_graph, tmp_path):
    save(make_graph("y = MatMul (x, k)", {"k": np.ones((4, 3), "f")}), tmp_path / "model.onnx")
    read, is_large = load(tmp_path / "model.onnx")
    assert not is_large
    assert not any(map(is_on_disk, read.graph.initializer))


def test_operators_of_onnx_pass(parse):
    check_operators(parse("y = Relu (x)"))


def test_missing_operators_are_named_with_their_layer(parse):
    model = parse("a = Svd (x) \n b = CumProd (a) \n y = Relu (b)")
    model.graph.node[0].name = "model/decomposed/Svd"
    with pytest.raises(ExportError, match="Svd in 'model/decomposed', CumProd"):
        check_operators(model)


def test_operators_of_later_opsets_and_of_branches_are_missing(parse):
    nodes = """
        y = If (flag) <
            then_branch = then_graph () => (float[A,B,C] a) { a = Gelu (x) },
            else_branch = else_graph () => (float[A,B,C] b) { b = Relu (x) }
        >
    """
    check_operators(parse(nodes, weights="bool[1] flag = {1}", opset=20))
    with pytest.raises(ExportError, match="write Gelu as ONNX"):
        check_operators(parse(nodes, weights="bool[1] flag = {1}", opset=18))


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


def test_simplify_removes_nodes_without_effect(make_graph, run):
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


@pytest.mark.parametrize("opset", [18, 19, 23, 25])
def test_raised_opset_computes_the_same(parse, run_all, draw, opset):
    nodes = "z = ReduceMean <keepdims = 1> (x, axes) y = Sub (x, z)"
    model = parse(nodes, weights="int64[1] axes = {-1}")
    raised = raise_opset(model, opset)
    assert [entry.version for entry in raised.opset_import] == [opset]
    arrays = draw(x=(2, 3, 4))
    assert (run_all(raised, arrays)[0] == run_all(model, arrays)[0]).all()


def test_equal_opset_returns_the_model(parse):
    model = parse("y = Abs (x)", opset=23)
    assert raise_opset(model, 23) is model


def test_failed_conversion_names_both_opsets(parse):
    model = parse("y = Unheard (x)")
    with pytest.raises(ExportError, match=r"opset 18, .* opset 23: .*opset=18"):
        raise_opset(model, 23)
