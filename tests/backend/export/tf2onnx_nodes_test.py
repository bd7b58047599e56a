"""Nodes go where the handlers of tf2onnx put them."""

import types

from keras_deepseek.backend.export.tf2onnx_integers import add_node, replace_node


class Graph:
    def __init__(self):
        self.removed, self.made = [], []

    def remove_node(self, name):
        self.removed.append(name)

    def make_node(self, operator, inputs, **described):
        self.made.append((operator, inputs, described))
        return types.SimpleNamespace(output=[f"{operator}:0", f"{operator}:1"])


def test_an_added_node_is_its_first_output():
    graph = Graph()
    assert add_node(graph, "Cast", ["x"], to=7) == "Cast:0"
    assert graph.made == [("Cast", ["x"], {"attr": {"to": 7}})]


def test_a_node_in_the_place_of_another_has_its_outputs():
    graph = Graph()
    node = types.SimpleNamespace(
        name="old", output=["y:0"], output_shapes=[[-1, 3]], output_dtypes=[1]
    )
    replace_node(graph, node, "old", "Mod", ["x", "y"], fmod=0)
    assert graph.removed == ["old"]
    described = {"attr": {"fmod": 0}, "name": "old", "outputs": ["y:0"]}
    described |= {"shapes": [[-1, 3]], "dtypes": [1]}
    assert graph.made == [("Mod", ["x", "y"], described)]
