"""Functions of `ops.cond`, `ops.scan` and their like, traced to inner graphs of any size."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_deepseek.graph.known_code import CannotOpenError
from keras_deepseek.graph.plans import Plan
from keras_deepseek.graph.program import Program
from keras_deepseek.graph.read_sizes import read_sizes
from keras_deepseek.graph.sizes import free_program

X = np.random.default_rng(0).normal(size=(3, 7, 4)).astype("float32")


class Calling(layers.Layer):
    """A layer of a function; nobody infers its shapes, for which Keras may need a known length."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, None, 4))


def model_of(layer):
    x = keras.Input((None, 4))
    return keras.Model(x, layer(x))


def trace(model):
    graph, axes, reasons = free_program(model, keras.KerasTensor((3, 7, 4)))
    assert [axis.input_axes for axis in axes] == [((0, 0),), ((0, 1),)], reasons
    return graph


def check(layer, sizes=((3, 7), (1, 1), (4, 12), (2, 33))):
    """Compares the program of a layer with the layer at sizes that no trace had."""
    model = model_of(layer)
    graph = trace(model)
    assert not graph.leaves
    found = sorted(node.kind for node in graph.all_nodes() if node.graphs)
    read_sizes(graph)
    program = Program(graph)
    for rows, length in sizes:
        batch = ops.convert_to_tensor(np.resize(X, (rows, length, 4)))
        received, expected = (
            [ops.convert_to_numpy(tensor) for tensor in keras.tree.flatten(call(batch))]
            for call in (program, model)
        )
        for array, other in zip(received, expected, strict=True):
            assert array.dtype == other.dtype
            np.testing.assert_allclose(array, other, rtol=1e-5, atol=1e-5)
    return found


def positions(x):
    """Positions of each step, in a loop: it reads a size, and makes a tensor of it."""

    def step(carry, value):
        places = ops.cast(ops.arange(ops.shape(x)[1]), "float32")
        carry = carry + value * ops.sum(places) + ops.cast(ops.shape(x)[1], "float32")
        return carry, carry

    return ops.scan(step, ops.zeros((ops.shape(x)[0], 4)), ops.transpose(x, (1, 0, 2)))[1]


def by_branch(x):
    def tall():
        return ops.reshape(x, (ops.shape(x)[0] * ops.shape(x)[1], 4))

    def negative():
        return -ops.reshape(ops.tanh(x), (-1, 4))

    return ops.cond(ops.sum(x) > 0, tall, negative)


def by_the_data(x):
    values, count = ops.while_loop(
        lambda v, n: ops.logical_and(ops.max(v) < 9.0, n < ops.shape(x)[1]),
        lambda v, n: (v + ops.abs(x), n + 1),
        (x, 0),
    )
    return values * ops.cast(count, "float32")


def nested(x):
    def step(carry, row):
        inner = ops.fori_loop(0, ops.shape(x)[0], lambda i, v: v * 0.5 + row[0] + x[0, 0], carry)
        return inner, ops.cond(ops.sum(row) > 0, lambda: inner + carry, lambda: inner - row[-1])

    return ops.scan(step, x[0, 0], x)[1]


def in_chunks(x):
    """Chunks of four tokens, for which it pads if it has to: other operations at some lengths."""
    padding = -ops.shape(x)[1] % 4
    if padding:
        x = ops.pad(x, ((0, 0), (0, padding), (0, 0)))
    chunks = ops.reshape(x, (ops.shape(x)[0], ops.shape(x)[1] // 4, 4, 4))

    def step(carry, chunk):
        carry = 0.5 * carry + ops.sum(chunk, axis=1)
        return carry, chunk[:, 0] * carry

    first = ops.zeros((ops.shape(x)[0], 4))
    last, _ = ops.scan(step, first, ops.transpose(chunks, (1, 0, 2, 3)))
    return last * ops.cast(ops.shape(x)[1], "float32")


def by_a_size(x):
    is_long = ops.convert_to_tensor(ops.shape(x)[1]) > 9
    return ops.cond(is_long, lambda: 2 * x, lambda: x - 1)


FUNCTIONS = {
    "sizes in a loop": (positions, ["ForEach"]),
    "sizes in a branch": (by_branch, ["Branch"]),
    "a branch by a size": (by_a_size, ["Branch"]),
    "a loop on data": (by_the_data, ["While"]),
    "loops and a branch in a loop": (nested, ["Branch", "ForEach", "While"]),
    "map": (lambda x: ops.map(lambda row: ops.sum(row, axis=0), x), ["ForEach"]),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_function_at_any_size(case):
    function, kinds = FUNCTIONS[case]
    assert check(Calling(function)) == kinds


def test_a_layer_with_the_name_of_an_operation():
    class Cond(Calling):
        pass

    assert check(Cond(by_a_size)) == ["Branch"]


def test_a_loop_in_a_layer_that_chooses_by_a_size():
    check(Calling(in_chunks), [(3, 7), (2, 8), (1, 1), (2, 33)])


class Deep(layers.Layer):
    """A loop that calls another layer, and reads a weight of its own and a tensor."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def build(self, _):
        self.dense.build((None, 4))
        self.scale = self.add_weight(shape=(4,), initializer="ones")

    def call(self, x):
        mean = ops.mean(x, axis=1)
        return ops.fori_loop(0, 3, lambda _, v: self.dense(v) * self.scale + mean, mean)


def test_weights_in_a_loop():
    layer = Deep()
    check(layer)
    layer.scale.assign([1.0, 2.0, 3.0, 4.0])
    check(layer)


def test_what_does_not_depend_on_a_step_is_computed_once():
    def function(x):
        return ops.map(lambda row: ops.exp(row) * ops.tanh(x[0]), x)

    graph = trace(model_of(Calling(function)))
    kinds = [node.kind for node in graph.nodes()]
    assert "Tanh" in kinds
    assert "Exp" not in kinds


def test_what_one_branch_computes_is_inside_of_it():
    def function(x):
        shared = ops.tanh(x)
        return ops.cond(ops.max(x) > 1, lambda: ops.exp(shared), lambda: ops.square(x)) + shared

    graph = trace(model_of(Calling(function)))
    kinds = [node.kind for node in graph.nodes()]
    assert kinds.count("Tanh") == 1
    assert not {"Exp", "Square"} & set(kinds)


def leaking(x):
    kept = []

    def step(carry, value):
        kept.append(value)
        return carry + value, carry

    ops.scan(step, x[:, 0], ops.transpose(x, (1, 0, 2)))
    return kept[0]


def changing_shape(x):
    return ops.while_loop(
        lambda v: ops.shape(v)[0] < 50, lambda v: ops.concatenate([v, v]), ops.reshape(x, (-1,))
    )


class Adding(layers.Layer):
    def call(self, x):
        return ops.map(self.run, x)

    def run(self, row):
        self.add_loss(ops.sum(row))
        return row


REFUSED = {
    "a tensor of a step that is used outside": (Calling(leaking), "outside"),
    "a variable that changes its shape": (Calling(changing_shape), "shape"),
    "a loss": (Adding(), "add_loss"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_function_that_no_graph_has_stays_in_its_layer(case):
    layer, reason = REFUSED[case]
    try:
        graph, _, _ = free_program(model_of(layer), keras.KerasTensor((3, 7, 4)))
    except CannotOpenError as error:
        reasons = [str(error)]
    else:
        reasons = [leaf.reason for leaf in graph.leaves.values()]
    assert any(reason in text for text in reasons), reasons


def test_a_plan_keeps_the_layer_whole():
    model = model_of(Calling(positions))
    plan = Plan(model, keras.KerasTensor((3, 7, 4)), training=False, passes=(), opens_foreign=True)
    (leaf,) = plan.leaves.values()
    assert "holds a function" in leaf.reason
