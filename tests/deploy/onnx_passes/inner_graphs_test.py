import pytest

from keras_deepseek.deploy.onnx_passes.graph_view import inner_graphs


def test_branches_and_bodies_are_found_and_others_have_none():
    helper = pytest.importorskip("onnx.helper")
    graphs = [helper.make_graph([], name, [], []) for name in ("first", "second", "third")]
    node = helper.make_node("If", ["x"], ["y"], then_branch=graphs[0], else_branch=graphs[1])
    assert sorted(graph.name for graph in inner_graphs(node)) == ["first", "second"]
    node = helper.make_node("Own", ["x"], ["y"], bodies=graphs, scale=2.0)
    assert [graph.name for graph in inner_graphs(node)] == ["first", "second", "third"]
    assert not list(inner_graphs(helper.make_node("Relu", ["x"], ["y"])))
