"""Branches and loops, written as ONNX, compute what Keras does, at sizes that no trace had."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_deepseek.deploy.onnx_writer import NoEntryError
from tests.oracles.operation_case import as_layer, check_operation

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(4, 6, 3)).astype("float32")


def steps_first(x):
    return ops.transpose(x, (1, 0, 2))


def check(function, *arrays, **kwargs):
    return check_operation(as_layer(function), *(arrays or (X,)), free_axes=[1], **kwargs)


def kinds(proto):
    return [node.op_type for node in proto.graph.node]


def is_positive(x):
    return ops.sum(x) > 0


BRANCHES = {
    "tensors": lambda x: ops.cond(is_positive(x), lambda: ops.tanh(x), lambda: x - 2.0),
    "a tensor from outside": lambda x: ops.cond(is_positive(x), lambda: x, lambda: ops.exp(x)),
    "structures": lambda x: ops.cond(
        is_positive(x),
        lambda: {"b": (x, ops.max(x)), "a": x[:, 0]},
        lambda: {"b": (-x, ops.min(x)), "a": x[:, -1]},
    )["b"],
    "constants": lambda x: x * ops.cond(is_positive(x), lambda: 2.0, lambda: 3.0),
    "sizes": lambda x: ops.cond(
        is_positive(x),
        lambda: (
            ops.cast(ops.arange(ops.shape(x)[1]), "float32") + ops.cast(ops.shape(x)[0], "float32")
        ),
        lambda: ops.zeros((ops.shape(x)[1],)),
    ),
    "a branch in a branch": lambda x: ops.cond(
        is_positive(x),
        lambda: ops.cond(ops.max(x) > 1.0, lambda: x + 1.0, lambda: x + 2.0),
        lambda: ops.cond(ops.max(x) > 1.0, lambda: x + 3.0, lambda: x + 4.0),
    ),
    "a number as the condition": lambda x: ops.cond(
        ops.cast(ops.max(x) > 1.0, "int32") > 0, lambda: x, lambda: -x
    ),
    "a bool of Python": lambda x: ops.cond(x.ndim == 3, lambda: ops.tanh(x), lambda: x),
    "one of three": lambda x: ops.switch(
        ops.cast(ops.sum(x), "int32"), [ops.tanh, lambda v: v + 1.0, lambda v: v * 3.0], x
    ),
}


@pytest.mark.parametrize("sign", [1, -1, 0.001], ids=["true", "false", "small"])
@pytest.mark.parametrize("case", BRANCHES)
def test_a_branch(case, sign):
    array = (np.abs(X) * sign).astype("float32")
    check(BRANCHES[case], array)


def test_a_branch_runs_alone():
    proto = check(BRANCHES["tensors"])
    assert kinds(proto)[-1] == "If"
    assert "Tanh" not in kinds(proto)


def decaying_sum(x, reverse=False, unroll=1):
    def step(carry, value):
        carry = 0.5 * carry + ops.tanh(value)
        return carry, carry

    last, sums = ops.scan(step, ops.zeros_like(x[:, 0]), steps_first(x), None, reverse, unroll)
    return sums, last


def over_structures(x):
    """A carry of two tensors, and sequences of two sizes of rows."""

    def step(carry, value):
        total, greatest = carry
        both = (total + value["v"], ops.maximum(greatest, value["w"]))
        return both, both

    rows = steps_first(x)
    first = (ops.zeros_like(x[:, 0]), ops.zeros_like(x[:, 0, 0]))
    (total, _), (totals, greatest) = ops.scan(step, first, {"v": rows, "w": rows[:, :, 1]})
    return total, totals, greatest


def without_sequences(x):
    def step(carry, _):
        return carry * 1.5, carry * 1.5

    return ops.scan(step, x, length=4)


def with_a_free_number_of_steps(x):
    def step(carry, _):
        return carry + 1.0, carry + 1.0

    return ops.scan(step, ops.mean(x, axis=1), length=ops.shape(x)[1])[1]


def reading_from_outside(x):
    mean = ops.mean(x, axis=1)
    weights = ops.convert_to_tensor(np.eye(3, dtype="float32") * 2)
    positions = ops.cast(ops.arange(ops.shape(x)[1]), "float32")

    def step(carry, value):
        carry = carry + ops.matmul(value, weights) - mean + ops.sum(positions)
        return carry, carry

    return ops.scan(step, mean, steps_first(x))


def loop_in_a_loop(x):
    def outer(carry, value):
        def inner(total, column):
            total = total * 0.5 + column + carry[:, 0]
            return total, total

        last, _ = ops.scan(inner, value[:, 0], ops.transpose(value))
        return carry + last[:, None], carry + last[:, None]

    return ops.scan(outer, ops.zeros_like(x[:, 0]), steps_first(x))


def branch_in_a_loop(x):
    def step(carry, value):
        doubled = ops.tanh(carry) * 2.0
        carry = ops.cond(ops.sum(value) > 0, lambda: doubled + value, lambda: carry - value)
        return carry, carry

    return ops.scan(step, x[:, 0], steps_first(x))


def loop_in_a_branch(x):
    return ops.cond(is_positive(x), lambda: decaying_sum(x)[0], lambda: steps_first(x))


def running_sum(x, reverse=False):
    return ops.associative_scan(ops.add, x, axis=1, reverse=reverse)


def affine_recurrence(x):
    def combine(left, right):
        return left[0] * right[0], left[1] * right[0] + right[1]

    return ops.associative_scan(combine, (ops.sigmoid(x), x), axis=1)[1]


LOOPS = {
    "scan": decaying_sum,
    "scan backwards": lambda x: decaying_sum(x, reverse=True),
    "scan unrolled": lambda x: decaying_sum(x, unroll=2),
    "scan without sequences": without_sequences,
    "scan that reads from outside": reading_from_outside,
    "scan in a scan": loop_in_a_loop,
    "cond in a scan": branch_in_a_loop,
    "scan in a cond": loop_in_a_branch,
    "map": lambda x: ops.map(lambda row: ops.cumsum(row, axis=0) - ops.max(row), x),
    "map of several": lambda x: ops.map(
        lambda pair: (pair[0] * ops.sum(pair[1]), pair[1] > 0), (x, x[:, :, 0])
    ),
    "vectorized_map": lambda x: ops.vectorized_map(lambda row: row - ops.mean(row, axis=0), x),
    "vectorized_map of several": lambda x: ops.vectorized_map(
        lambda pair: ops.matmul(pair[0], pair[1]), (x, ops.transpose(x, (0, 2, 1)))
    ),
    "fori_loop": lambda x: ops.fori_loop(1, 4, lambda i, v: v + x * ops.cast(i, "float32"), x),
    "fori_loop up to a size": lambda x: ops.fori_loop(
        0, ops.shape(x)[1], lambda i, v: 0.5 * v + ops.take(x, i, axis=1), x[:, 0]
    ),
    "fori_loop of no steps": lambda x: ops.fori_loop(3, 3, lambda i, v: v + 1.0, x),
}


@pytest.mark.parametrize("case", LOOPS)
def test_a_loop(case):
    check(LOOPS[case], lengths=(1, 6, 9))


OF_KNOWN_LENGTH = {
    "scan of structures": lambda x: over_structures(x)[1],
    "scan of as many steps as an axis has": with_a_free_number_of_steps,
    "associative_scan": running_sum,
    "associative_scan backwards": lambda x: running_sum(x, reverse=True),
    "associative_scan of structures": affine_recurrence,
}
"""Functions of which Keras infers the shapes on some backends only if it knows the length."""


class Declaring(layers.Layer):
    """A layer of a function, whose shape nobody has to infer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, None, 3), "float32")


@pytest.mark.parametrize("case", OF_KNOWN_LENGTH)
def test_a_loop_of_which_keras_infers_no_shape(case):
    layer = Declaring(OF_KNOWN_LENGTH[case])
    check_operation(layer, X, free_axes=[1], lengths=(1, 6, 9))


IN_A_GRAPH = {
    "map": lambda x: ops.map(lambda row: row * 2.0, x),
    "vectorized_map": lambda x: ops.vectorized_map(ops.tanh, x),
    "scan": lambda x: ops.scan(lambda c, v: (c + v, c * v), x[0], x)[1],
    "while_loop": lambda x: ops.while_loop(lambda v: ops.max(v) < 9.0, lambda v: v + 1.0, x),
    "fori_loop": lambda x: ops.fori_loop(0, 3, lambda i, v: v + 1.0, x),
    "switch": lambda x: ops.switch(ops.argmax(x[0, 0]), [ops.tanh, ops.exp, ops.square], x),
}


@pytest.mark.parametrize("case", IN_A_GRAPH)
def test_an_operation_between_the_layers_of_a_graph(case):
    check_operation(IN_A_GRAPH[case], X)


def halved(x, limit=None):
    def goes_on(values, count):
        return ops.max(ops.abs(values)) > 1.0

    return ops.while_loop(goes_on, lambda v, c: (v * 0.5, c + 1), (x, 0), limit)


@pytest.mark.parametrize("size", [100.0, 0.01], ids=["several steps", "no step"])
@pytest.mark.parametrize("limit", [None, 2, 0, 50], ids=str)
def test_a_loop_that_depends_on_the_data(limit, size):
    check(lambda x: halved(x, limit), (X * size).astype("float32"))


def test_a_loop_of_one_variable():
    def function(x):
        return ops.while_loop(lambda v: ops.sum(v) < 50.0, lambda v: v * 2.0 + 0.1, ops.abs(x))

    check(function)


def test_a_loop_of_structures():
    def function(x):
        first = {"v": x, "n": (ops.sum(x), ops.max(x))}

        def step(state, count):
            total, top = state["n"]
            return {"v": state["v"] * 2.0, "n": (total + 1.0, top)}, count + 1

        return ops.while_loop(lambda _, count: count < 3, step, (first, 0))[0]["v"]

    check(function)


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("steps", [0, 4])
def test_a_loop_over_no_steps_or_no_rows(steps, rows):
    import onnxruntime

    from keras_deepseek.backend.export.named_model import NamedModel
    from keras_deepseek.deploy.onnx_writer import write_program

    x = keras.Input((None, 3), name="x")
    model = keras.Model(x, as_layer(decaying_sum)(x))
    proto = write_program(NamedModel(model), {"x": X}, 18)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    sums, _ = session.run(None, {"x": np.zeros((rows, steps, 3), "float32")})
    assert sums.shape == (steps, rows, 3)


class Recurrence(layers.Layer):
    """A loop whose step calls layers with weights."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(5, activation="tanh")
        self.norm = layers.LayerNormalization()

    def build(self, shape):
        self.dense.build((None, shape[-1] + 5))
        self.norm.build((None, 5))
        self.scale = self.add_weight(shape=(5,), initializer="ones")

    def call(self, x):
        def step(carry, value):
            carry = self.norm(self.dense(ops.concatenate([value, carry], axis=-1)))
            return carry, carry * self.scale

        _, outputs = ops.scan(step, ops.zeros((ops.shape(x)[0], 5)), steps_first(x))
        return steps_first(outputs)


def test_a_loop_over_layers():
    layer = Recurrence()

    def function(x):
        output = layer(x)
        generator = np.random.default_rng(1)
        for weight in layer.weights:
            weight.assign(generator.normal(size=weight.shape))
        return output

    check_operation(function, X, free_axes=[1])


class Choosing(layers.Layer):
    """Layers that both branches and the code around them call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        hidden = ops.cond(is_positive(x), lambda: self.dense(x), lambda: self.dense(-x) * 2.0)
        return self.dense(hidden)


@pytest.mark.parametrize("sign", [1, -1], ids=["true", "false"])
def test_a_layer_in_both_branches(sign):
    check_operation(Choosing(), (np.abs(X) * sign).astype("float32"), free_axes=[1])


class Counting(layers.Layer):
    def build(self, _):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        def step(carry, value):
            self.count.assign_add(1.0)
            return carry + value, carry

        return ops.scan(step, ops.zeros_like(x[:, 0]), steps_first(x))[1]


class Noisy(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x):
        return ops.map(lambda row: row + keras.random.normal((3,), seed=self.seeds), x)


REFUSED = {"a variable": (Counting, "assigns"), "random numbers": (Noisy, "draws random")}


@pytest.mark.parametrize("case", REFUSED)
def test_a_function_with_effects_is_refused(case):
    layer, reason = REFUSED[case]
    with pytest.raises(NoEntryError, match=reason):
        check_operation(layer(), X)
