import keras
import numpy as np
import pytest
from keras import layers

from keras_deepseek.callbacks import count_training_flops
from keras_deepseek.graph.layer_graph import draw_layers
from keras_deepseek.layers import DeepSeekMoE, ExpertRouter


class Block(keras.layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.norm = layers.LayerNormalization(name="norm")
        self.attention = layers.MultiHeadAttention(2, 4, name="attention")
        self.up = layers.Dense(16, activation="gelu", name="up")
        self.down = layers.Dense(8, name="down")

    def call(self, x):
        x = x + self.attention(self.norm(x), self.norm(x))
        return x + self.down(self.up(x))


def transformer():
    inputs = keras.Input((6, 8))
    x = Block(name="first")(inputs)
    return keras.Model(inputs, layers.Dense(3, name="head")(Block(name="second")(x)), name="m")


def convolutional():
    return keras.Sequential(
        [
            keras.Input((12, 12, 2)),
            layers.Conv2D(4, 3, strides=2),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3),
            layers.Flatten(),
            layers.Dropout(0.1),
            layers.EinsumDense("...x,xy->...y", output_shape=5),
        ]
    )


def experts():
    return keras.Sequential(
        [keras.Input((6, 3)), DeepSeekMoE(ExpertRouter(4, 2), intermediate_dim=2)]
    )


def batch_for(model, rows=2):
    (symbol,) = model.inputs
    return keras.KerasTensor((rows, *symbol.shape[1:]), symbol.dtype)


def child(node, name):
    return next(inner for inner in node.children if inner.name == name)


def test_layers_are_open_down_to_operations():
    model = transformer()
    graph = draw_layers(model, batch_for(model))
    assert [node.name for node in graph.children if node.kind == "layer"] == [
        *("first", "second", "head"),
    ]
    assert graph.out == [([2, 6, 3], "float32")]
    assert graph.params == model.count_params()
    first = child(graph, "first")
    assert [node.name for node in first.children] == [
        *("norm", "attention", "Add", "up", "down", "Add"),
    ]
    assert (first.path, child(first, "up").path) == ("first", "first/up")
    assert child(first, "up").out == [([2, 6, 16], "float32")]
    # Both residual edges are there: from the input, and from the first sum.
    assert {("in", 0), ("in", 2), (2, 3), (2, 5), (5, "out")} <= set(first.edges)
    head = child(graph, "head")
    assert [node.name for node in head.children] == ["Matmul", "Add"]
    assert head.edges == [("in", 0), ("const", 0), (0, 1), ("const", 1), (1, "out")]


@pytest.mark.parametrize("build", [transformer, convolutional, experts])
def test_operations_are_those_that_the_framework_counts(build):
    model = build()
    batch = batch_for(model)
    x = np.ones(batch.shape, batch.dtype)
    assert draw_layers(model, batch).flops == count_training_flops(model, x) / 3


def test_sizes_that_are_not_known_are_drawn_without_a_count():
    x = inputs = keras.Input((None, 8))
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x[:, 0]))
    root = draw_layers(model, keras.KerasTensor((2, None, 8)))
    attention, head = child(root, "attention"), child(root, "head")
    query = child(attention, "query").children[0]
    assert (query.name, query.out[0][0], query.flops) == ("Einsum", [2, None, 2, 4], None)
    assert head.flops == 2 * 2 * 8 * 3


def test_a_layer_that_cannot_be_opened_says_why():
    model = keras.Sequential([keras.Input((5, 3)), layers.LSTM(4, name="lstm"), layers.Dense(1)])
    lstm = child(draw_layers(model, batch_for(model)), "lstm")
    assert (lstm.children, lstm.flops, lstm.out) == ([], None, [([2, 4], "float32")])
    assert "KerasTensor" in lstm.reason


def test_a_model_that_cannot_be_opened_lists_its_layers():
    class Odd(keras.Model):
        def __init__(self):
            super().__init__(name="odd")
            self.head = layers.Dense(1, name="head")

        def call(self, x):
            return self.head(x * float(keras.ops.sum(x)))

    model = Odd()
    model(np.ones((2, 3), "float32"))
    graph = draw_layers(model, keras.KerasTensor((2, 3), "float32"))
    assert graph.reason
    assert [(node.name, node.params) for node in graph.children] == [("head", 4)]


def test_layers_with_one_path_are_told_apart_and_left_as_they_were():
    def tower(units):
        inputs = keras.Input((4,))
        return keras.Model(inputs, layers.Dense(units, name="dense")(inputs), name=f"t{units}")

    inputs = keras.Input((4,))
    towers = [tower(2), tower(3)]
    model = keras.Model(inputs, [submodel(inputs) for submodel in towers])
    paths = [layer.path for layer in model._flatten_layers()]
    nodes = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    graph = draw_layers(model, batch_for(model))
    inside = [node.children[-1] for node in graph.children if node.kind == "layer"]
    assert [node.params for node in inside] == [10, 15]
    assert inside[0].path != inside[1].path
    assert [layer.path for layer in model._flatten_layers()] == paths
    assert [len(layer._inbound_nodes) for layer in model._flatten_layers()] == nodes
