"""Free sizes: programs that serve sizes that no trace had, and models that choose by a size."""

import math
import threading

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_deepseek.backend.keras_private.replaced_functions import replaced_functions
from keras_deepseek.graph.created_tensors import creation_as_operations
from keras_deepseek.graph.plans import Plan
from keras_deepseek.graph.size_expressions import InputAxis, Size, evaluate
from keras_deepseek.graph.sizes import free_program


def as_layer(function):
    """Returns a layer of a function; the model that it is in declares the sizes."""

    class Calling(layers.Layer):
        def call(self, *inputs):
            return function(*inputs)

        def compute_output_spec(self, *inputs):
            return keras.KerasTensor((None, None, 4))

    return Calling()


def model_of(function, num_inputs=1):
    inputs = [keras.Input((None, 4)) for _ in range(num_inputs)]
    return keras.Model(inputs, as_layer(function)(*inputs))


def plan_of(model, *shapes):
    example = [keras.KerasTensor(shape) for shape in shapes]
    return Plan(model, example, training=False, passes=(), opens_foreign=True)


def check(model, plan, *shapes):
    assert plan.fits(shapes), plan.reasons
    assert not plan.leaves
    generator = np.random.default_rng(0)
    inputs = [ops.convert_to_tensor(generator.normal(size=s).astype("float32")) for s in shapes]
    received, expected = (
        ops.convert_to_numpy(keras.tree.flatten(call(inputs))[0]) for call in (plan.program, model)
    )
    assert received.dtype == expected.dtype
    np.testing.assert_allclose(received, expected, atol=1e-5)


def reshaping(x):
    rows, length, width = ops.shape(x)
    flat = ops.reshape(x, (rows, length * width))
    return ops.reshape(flat, (rows, length, width)) + ops.broadcast_to(x[:1], (rows, length, width))


def padded_to_multiple(x):
    return ops.pad(x, ((0, 0), (0, -x.shape[1] % 4), (0, 0)))


def first_half(x):
    return x[:, : ops.shape(x)[1] // 2]


def product_of_axes(x):
    rows, length, width = ops.shape(x)
    return ops.reshape(ops.reshape(x, (rows * length, width)) * 2.0, (rows, length, width))


def of_convolution(x):
    y = ops.average_pool(ops.conv(x, ops.ones((3, 4, 4)) / 9.0), 2, 2)
    positions = ops.arange(ops.shape(y)[1], dtype="float32")
    return y * ops.reshape(positions, (1, -1, 1))


def rotated(x):
    """Computes with sizes of which Keras knows ints alone, as with those of NumPy."""
    length = int(ops.shape(x)[1])
    start, rest = int(np.floor(length / 2)), length - int(np.floor(length / 2))
    return ops.concatenate([x[:, start:] * rest, x[:, :start]], axis=1)


def causal(x):
    length = ops.shape(x)[1]
    mask = ops.tril(ops.ones((length, length), "bool"))
    scores = ops.where(mask, ops.matmul(x, ops.transpose(x, (0, 2, 1))), -1e9)
    return ops.matmul(ops.softmax(scores), x)


def created(x):
    length = ops.shape(x)[1]
    squares = [
        ops.eye(length),
        ops.identity(length),
        ops.tri(length),
        ops.eye(length, length, 1),
        ops.full((length, length), 0.5),
        ops.zeros((length, length)),
        ops.cast(ops.arange(length)[None] < ops.arange(0, 2 * length, 2)[:, None], "float32"),
        ops.ones(length)[None] * ops.arange(-1, length - 1, dtype="float32")[:, None],
    ]
    return ops.matmul(sum(square * (n + 1) for n, square in enumerate(squares)), x)


def divided(x):
    return ops.sum(x, axis=0, keepdims=True) / ops.shape(x)[0] + x


def scaled_by_the_length(x):
    length = ops.cast(ops.shape(x)[1], "float32")
    return x / ops.sqrt(length) + ops.convert_to_tensor(x.shape[0], dtype="float32")


def with_a_number_for_each_row(x):
    return x / (1.0 + ops.sum(ops.abs(x), axis=(1, 2), keepdims=True))


@pytest.mark.parametrize(
    "function",
    [
        created,
        scaled_by_the_length,
        with_a_number_for_each_row,
        reshaping,
        padded_to_multiple,
        first_half,
        product_of_axes,
        of_convolution,
        rotated,
        causal,
        divided,
    ],
)
def test_a_program_serves_sizes_that_no_trace_had(function):
    model = model_of(function)
    plan = plan_of(model, (2, 6, 4))
    for shape in [(3, 6, 4), (1, 9, 4), (5, 16, 4), (4, 50, 4)]:
        check(model, plan, shape)


def test_attention_serves_all_sizes():
    inputs = keras.Input((None, 4))
    model = keras.Model([inputs], layers.MultiHeadAttention(2, 3)(inputs, inputs))
    plan = plan_of(model, (2, 5, 4))
    for shape in [(3, 5, 4), (1, 9, 4)]:
        check(model, plan, shape)


def test_inputs_of_one_length_stay_so():
    model = model_of(lambda x, y: x + y, 2)
    plan = plan_of(model, (2, 5, 4), (2, 5, 4))
    check(model, plan, (3, 7, 4), (3, 7, 4))
    assert not plan.fits([(3, 7, 4), (3, 8, 4)])


def test_inputs_of_one_length_may_differ_if_the_model_takes_that():
    model = model_of(lambda x, y: ops.concatenate([x, y], axis=1)[:, : x.shape[1] + 1], 2)
    plan = plan_of(model, (2, 5, 4), (2, 5, 4))
    check(model, plan, (3, 7, 4), (3, 9, 4))


def only_beyond(x):
    return x * 2.0 if x.shape[1] > 32 else x


def only_below(x):
    return x * 2.0 if x.shape[1] < 4 else x


def only_one_number(x):
    return x * 2.0 if x.shape[1] == 77 else x


def only_far_away(x):
    return x * 2.0 if x.shape[1] // 2 >= 10_000 else x


def only_even_ones(x):
    return x * 2.0 if x.shape[1] % 2 == 0 else x


def only_multiples(x):
    return x if x.shape[1] % 7 else x * 2.0


def only_even_ones_in_numpy(x):
    return x * 2.0 if np.mod(x.shape[1], 2) == 0 else x


def at_most(x):
    return x[:, : min(x.shape[1], 20)] * 2.0


def by_root(x):
    return x * math.isqrt(x.shape[1])


def looping(x):
    return ops.stack([x[:, step] * 2.0 for step in range(x.shape[1])], axis=1)


def by_constant(x):
    return x * ops.convert_to_tensor(np.linspace(0, 1, x.shape[1], dtype="float32")[:, None])


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (only_beyond, "33 of axis 1 of input 0"),
        (only_below, "computes something else"),
        (only_one_number, "77 of axis 1 of input 0"),
        (only_far_away, "20000 of axis 1 of input 0"),
        (only_even_ones, "computes something else"),
        (only_multiples, "computes something else"),
        (only_even_ones_in_numpy, "computes something else"),
        (at_most, "uses a number that no expression gives: "),
        (by_root, "uses a number that no expression gives: "),
        (looping, "computes something else"),
        (by_constant, "makes another constant, by NumPy or of random numbers, with size"),
    ],
)
def test_a_model_that_chooses_by_a_size_says_so(function, reason):
    model = model_of(function)
    _, axes, reasons = free_program(model, [keras.KerasTensor((2, 5, 4))])
    assert [str(axis) for axis in axes] == ["axis 0 of input 0"]
    assert any(reason in text for text in reasons), reasons
    assert "keeps" not in "".join(reasons)
    plan = plan_of(model, (2, 5, 4))
    check(model, plan, (7, 5, 4))
    assert not plan.fits([(2, 6, 4)])


def test_random_numbers_of_an_integer_seed_are_named_as_the_reason():
    def noisy(x):
        return x + keras.random.normal(x.shape, seed=3)

    _, axes, reasons = free_program(model_of(noisy), [keras.KerasTensor((2, 5, 4))])
    assert axes == []
    assert all("another constant, by NumPy or of random numbers" in reason for reason in reasons)


LENGTHS = []


def test_a_loop_over_a_free_axis_is_not_traced_at_a_great_length():
    def loop(x):
        LENGTHS.append(x.shape[1])
        return looping(x)

    plan_of(model_of(loop), (2, 5, 4))
    assert max(LENGTHS) < 1000


def test_a_layer_for_each_time_step_is_whole_and_takes_any_length():
    inputs = keras.Input((None, 4))
    model = keras.Model([inputs], layers.TimeDistributed(layers.Dense(3))(inputs))
    plan = plan_of(model, (2, 5, 4))
    (leaf,) = plan.leaves.values()
    assert leaf.reason == "repeats its layer's operations for each time step"
    assert plan.fits([(3, 4099, 4)])


def last_four(x):
    return ops.matmul(x, ops.transpose(x[:, -4:], (0, 2, 1)))[:, :, :1] * ops.ones((4,))


def test_a_size_that_is_small_in_short_inputs_alone_is_not_taken_for_a_fixed_one():
    graph, axes, reasons = free_program(model_of(last_four), [keras.KerasTensor((2, 6, 4))])
    assert (len(axes), reasons) == (2, [])
    (small,) = {
        size.expression.axis
        for node in graph.nodes()
        for size in node.spec.shape
        if isinstance(size, Size) and node.kind == "GetItem"
    }
    assert small == 1


def test_equal_tensors_of_sizes_are_made_once():
    def twice(x):
        return x + sum(ops.arange(x.shape[1], dtype="float32")[:, None] for _ in range(2))

    model = model_of(twice)
    example = [keras.KerasTensor((2, 5, 4))]
    plan = Plan(model, example, training=False, passes=["equal_operations"], opens_foreign=True)
    check(model, plan, (3, 8, 4))
    assert [node.kind for node in plan.program.graph.nodes()].count("ReadSizes") == 1


def test_numbers_of_created_tensors_may_be_read_in_python():
    def weighted(x):
        return x * np.asarray(ops.convert_to_numpy(ops.arange(4))).sum()

    model = model_of(weighted)
    plan = plan_of(model, (2, 5, 4))
    assert not plan.leaves
    check(model, plan, (3, 8, 4))


def test_the_sizes_of_a_program_are_in_its_nodes():
    graph, axes, reasons = free_program(model_of(first_half), [keras.KerasTensor((2, 6, 4))])
    (size,) = [
        leaf
        for node in graph.nodes()
        for leaf in (
            part
            for s in keras.tree.flatten(node.args)
            if isinstance(s, slice)
            for part in (s.start, s.stop)
        )
        if isinstance(leaf, Size)
    ]
    assert (len(axes), reasons) == (2, [])
    assert evaluate(size.expression, {InputAxis(0, 1): 30}.__getitem__) == 15


def test_arithmetic_of_sizes_is_that_of_python():
    generator = np.random.default_rng(0)
    place = InputAxis(0, 1)
    for number, other in generator.integers(1, 50, (40, 2)).tolist():
        for compute in (
            lambda a, b: a + b,
            lambda a, b: b - a,
            lambda a, b: a * b + a,
            lambda a, b: -a % b,
            lambda a, b: b // a,
            lambda a, b: (a - b) // b * 2,
            lambda a, b: math.prod((a, b, a)),
        ):
            size = compute(Size(number, place), other)
            assert isinstance(size, Size)
            assert size == compute(number, other)
            assert evaluate(size.expression, {place: 7}.__getitem__) == compute(7, other)


def test_functions_of_keras_are_restored_and_other_threads_keep_them():
    """A canary: it fails when a Keras release moves a private name."""
    original = ops.arange
    others = []
    with creation_as_operations():
        assert isinstance(ops.arange(3), keras.KerasTensor)
        assert isinstance(keras.ops.numpy.ones((2,)), keras.KerasTensor)
        thread = threading.Thread(target=lambda: others.append(ops.arange(3)))
        thread.start()
        thread.join()
    assert ops.arange is original
    assert not isinstance(others[0], keras.KerasTensor)
    size = Size(3, InputAxis(0, 1))
    with replaced_functions(standardize_shape=lambda original, shape: (size, 7)):
        assert keras.KerasTensor((1,)).shape == (3, 7)
