import importlib.util

import pytest

from keras_deepseek.backend.runtimes.tensorrt_engine.error_log import make_error_log
from keras_deepseek.deploy.formats.tensorrt_engine.blocking_nodes import check_nodes
from keras_deepseek.errors import ExportError

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


def check(tensorrt, onnx_file):
    log = make_error_log(tensorrt)
    network = tensorrt.Builder(log).create_network(
        1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    check_nodes(tensorrt.OnnxParser(network, log), onnx_file)


def test_every_node_is_named_with_its_operator_and_the_reason(plain_tensorrt, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"any")
    check(plain_tensorrt, tmp_path / "model.onnx")
    codes = plain_tensorrt.ErrorCode
    plain_tensorrt.blocked = [
        (0, "first", "Det", codes.UNSUPPORTED_NODE, "false"),
        (2, "second", "Foo", codes.INVALID_NODE, "Plugin\n not found"),
        (3, "", "Bernoulli", codes.UNSUPPORTED_NODE, ""),
        (-1, "", "", codes.INVALID_NODE, "no such dtype"),
    ]
    with pytest.raises(ExportError) as raised:
        check(plain_tensorrt, tmp_path / "model.onnx")
    assert str(raised.value) == (
        "TensorRT can't take this model: node first (Det): unsupported node; "
        "node second (Foo): invalid node: Plugin not found; "
        "node number 3 (Bernoulli): unsupported node; "
        "the graph: invalid node: no such dtype"
    )


@needs_rtx
def test_tensorrt_rtx_names_every_node_that_it_stops_at(tmp_path):
    import tensorrt_rtx

    onnx = pytest.importorskip("onnx")
    helper, full = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="determinant"),
        helper.make_node("Relu", ["a"], ["b"], name="fine"),
        helper.make_node("Foo", ["b"], ["c"], name="own", domain="mine"),
        helper.make_node("Bernoulli", ["c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", full, ["batch", 4, 4])],
        [helper.make_tensor_value_info("y", full, None)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "model.onnx")
    with pytest.raises(ExportError) as raised:
        check(tensorrt_rtx, tmp_path / "model.onnx")
    for words in ("node determinant (Det): ", "node own (Foo): ", "node number 3 (Bernoulli): "):
        assert words in str(raised.value)
    assert "fine" not in str(raised.value)
