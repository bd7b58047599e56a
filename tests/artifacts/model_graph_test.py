import json

from keras_deepseek.artifacts.model_graph import GraphNode


def test_a_graph_is_a_document():
    head = GraphNode("layer", "head", "Dense", "line/head", params=5, flops=10)
    head.out.append(([2, 1], "float32"))
    model = GraphNode("layer", "line", "Model", "line", 5, 10, children=[head])
    model.edges += [("in", 0), (0, "out")]
    document = json.loads(json.dumps(model.as_document()))
    assert document["children"][0]["out"] == [[[2, 1], "float32"]]
    assert document["edges"] == [["in", 0], [0, "out"]]
    assert document["children"][0]["reason"] is None
