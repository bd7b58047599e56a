import json

import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.graph_view import (
    GraphView,
    attribute,
    drop_unused,
    import_package,
    in_both_orders,
    inner_graphs,
)
from keras_deepseek.errors import MissingExtraError

WEIGHTS = "float[2] pair = {1, 2}, float[1] third = {0.33333334}, int64 whole = {3}, bool yes = {1}"


@pytest.fixture
def model(parse):
    return parse("a = Add (x, third) b = Abs (a) c = Mul (a, b) y = Neg (c)", weights=WEIGHTS)


def test_makers_users_and_shapes(model):
    view = GraphView(model)
    assert view.opset == 18
    assert view.producer("b", "Abs", "Neg").input[0] == "a"
    assert view.producer("b", "Neg") is None
    assert view.producer("x", "Abs") is None
    assert [view.num_users(name) for name in ("a", "b", "y", "pair")] == [2, 1, 1, 0]
    assert view.shape("b") == ["N", "S", 4]
    assert view.shape("unheard") is None
    assert (view.dtype("b"), view.dtype("whole"), view.dtype("unheard")) == (1, 7, 0)


def test_numbers(model):
    view = GraphView(model)
    assert view.scalar("whole") == 3
    assert view.scalar("pair") is None
    assert view.scalar("yes") is None
    assert view.scalar("a") is None


def test_uses_within_nodes(model):
    view = GraphView(model)
    add, absolute, product, last = model.graph.node
    assert view.are_only_used_within([add, absolute, product], last)
    assert view.are_only_used_within([absolute], product)
    assert not view.are_only_used_within([add], absolute)  # The product uses it, too.
    assert not view.are_only_used_within([last], product)  # It is an output.


def test_new_weights_are_named_apart_and_shared(model):
    view = GraphView(model)
    names = [view.add_weight(np.array(array, "float32"), "w") for array in ([1, 2], [1, 3], [1, 2])]
    assert names[0] == names[2] != names[1]
    assert view.constant(names[1]).tolist() == [1, 3]
    assert view.add_weight(np.array(2.0), "number") == "number__"
    assert view.constant("number__").shape == ()


def test_new_nodes_stand_where_others_stood_and_what_nobody_uses_is_left_out(model):
    view = GraphView(model)

    def take_roots(view, node):
        return [view.node("Sqrt", ["b"], "root"), view.node("Sin", ["root"], node.output[0])]

    assert view.rewrite(take_roots, "Neg", "Cos") == 1
    assert [node.op_type for node in model.graph.node] == ["Add", "Abs", "Sqrt", "Sin"]
    assert [tensor.name for tensor in model.graph.initializer] == ["third"]
    assert (view.num_users("b"), view.shape("root")) == (1, ["N", "S", 4])
    assert view.producer("c", "Mul") is None


def test_nodes_are_asked_about_in_order(model):
    op_types = []

    def leave(view, node):
        op_types.append(node.op_type)

    view = GraphView(model)
    assert view.rewrite(leave, "Add", "Mul") == 0
    assert op_types == ["Add", "Mul"]


def test_shapes_are_inferred_once_as_long_as_nothing_changes(model, monkeypatch):
    import onnx

    inferred = []
    infer = onnx.shape_inference.infer_shapes
    monkeypatch.setattr(
        onnx.shape_inference, "infer_shapes", lambda *a, **k: inferred.append(1) or infer(*a, **k)
    )
    drop_unused(model.graph)
    view = GraphView(model)
    view.rewrite(lambda view, node: None, "Neg")
    assert not inferred
    for _ in range(3):
        view.rewrite(lambda view, node: view.shape(node.input[0]) and None, "Neg")
    assert len(inferred) == 1
    view.rewrite(lambda view, node: [view.node("Abs", ["c"], "y")], "Neg")
    assert view.shape("y")
    assert len(inferred) == 2


def test_inner_graphs_use_tensors_and_read_others(parse):
    nodes = """a = Abs (x)
        y = If (yes) <then_branch = one () => (float[A,B,C] p) { p = Neg (a) },
            else_branch = two () => (float[D,E,F] q) { q = Sin (x) }>"""
    model = parse(nodes, weights=WEIGHTS)
    view = GraphView(model)
    assert (view.num_users("a"), view.num_users("x")) == (1, 2)


def test_constants_of_nodes(parse):
    view = GraphView(parse("c = Constant <value = float[1] {2}> () y = Mul (x, c)"))
    assert view.scalar("c") == 2


def test_attributes_and_orders(model):
    node = GraphView(model).node("Softmax", ["x"], "y", axis=2)
    assert (attribute(node, "axis"), attribute(node, "unheard", 7)) == (2, 7)
    assert list(in_both_orders(model.graph.node[2])) == [("a", "b"), ("b", "a")]


def test_installed_package_is_imported():
    assert import_package("json") is json


def test_missing_package_names_its_extra():
    with pytest.raises(MissingExtraError, match=r"`not_there` .*keras_deepseek\[onnx\]"):
        import_package("not_there.inner")


def test_branches_and_bodies_are_found_and_others_have_none():
    helper = pytest.importorskip("onnx.helper")
    graphs = [helper.make_graph([], name, [], []) for name in ("first", "second", "third")]
    node = helper.make_node("If", ["x"], ["y"], then_branch=graphs[0], else_branch=graphs[1])
    assert sorted(graph.name for graph in inner_graphs(node)) == ["first", "second"]
    node = helper.make_node("Own", ["x"], ["y"], bodies=graphs, scale=2.0)
    assert [graph.name for graph in inner_graphs(node)] == ["first", "second", "third"]
    assert not list(inner_graphs(helper.make_node("Relu", ["x"], ["y"])))
