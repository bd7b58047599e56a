import gc
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend import current
from keras_deepseek.backend.data import array_pieces


def count_flops_of(layers, x):
    """Returns the operations of the forward pass of layers that are called one after the other."""
    inputs = keras.Input(x.shape[1:])
    outputs = inputs
    for layer in layers:
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    return backend.current().compute.count_flops(
        lambda trainable, other, x: model.stateless_call(trainable, other, x)[0],
        [variable.value for variable in model.trainable_variables],
        [variable.value for variable in model.non_trainable_variables],
        keras.ops.convert_to_tensor(x),
    )


def test_a_matrix_product():
    assert count_flops_of([keras.layers.Dense(7)], np.ones((3, 5), "float32")) == 2 * 3 * 5 * 7


@pytest.mark.parametrize(("groups", "in_a_group"), [(1, 4), (2, 2)])
def test_a_convolution(groups, in_a_group):
    layer = keras.layers.Conv2D(6, 3, padding="same", groups=groups)
    assert (
        count_flops_of([layer], np.ones((2, 5, 4, 4), "float32"))
        == 2 * (2 * 5 * 4 * 6) * 9 * in_a_group
    )


def test_a_depthwise_convolution():
    layer = keras.layers.DepthwiseConv2D(3, padding="same")
    assert count_flops_of([layer], np.ones((2, 5, 4, 3), "float32")) == 2 * (2 * 5 * 4 * 3) * 9


def test_attention():
    attention = keras.layers.MultiHeadAttention(num_heads=2, key_dim=4)
    projections = 4 * 2 * (3 * 6 * 5 * 8)
    attending = 2 * 2 * (3 * 2 * 6 * 6 * 4)

    class SelfAttention(keras.Layer):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def call(self, x):
            return self.attention(x, x)

    num_flops = count_flops_of([SelfAttention()], np.ones((3, 6, 5), "float32"))
    assert num_flops == projections + attending


def test_the_sum_of_products_with_an_ellipsis():
    def function(x, y):
        return keras.ops.einsum("...ij,jk->...ik", x, y)

    tensors = [keras.ops.ones((2, 3, 4, 5)), keras.ops.ones((5, 6))]
    assert backend.current().compute.count_flops(function, *tensors) == 2 * (2 * 3 * 4) * 5 * 6


def test_a_function_that_is_compiled_by_itself_counts_too():
    compiled = keras.ops.matmul
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(keras.ops.matmul)
    elif keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(keras.ops.matmul)
    tensors = [keras.ops.ones((3, 4)), keras.ops.ones((4, 5))]
    assert backend.current().compute.count_flops(compiled, *tensors) == 2 * 3 * 4 * 5


def test_a_loop_of_known_length_counts_as_often_as_it_runs():
    if keras.backend.backend() == "tensorflow":
        pytest.skip("In a graph of TensorFlow the body of a loop counts once.")

    def function(x):
        return keras.ops.scan(lambda carry, _: (keras.ops.matmul(carry, carry), None), x, length=3)

    assert backend.current().compute.count_flops(function, keras.ops.ones((4, 4))) == 3 * 2 * 4**3


LEFT = np.array([1.0, 2.0, 3.0], "float32")


RIGHT = np.array([0.5, -1.0, 4.0], "float32")


def test_gradients_come_by_input_and_by_variable():
    weight = keras.Variable(np.array([2.0, 3.0, 5.0], "float32"))
    by_input, by_variable = current().compute.compute_gradients(
        lambda x, y: ops.sum(x * x * weight + y), [LEFT, RIGHT], [weight]
    )
    np.testing.assert_allclose(by_input[0], 2 * LEFT * np.array([2.0, 3.0, 5.0]), rtol=1e-6)
    np.testing.assert_array_equal(by_input[1], np.ones(3))
    np.testing.assert_allclose(by_variable[0], LEFT * LEFT, rtol=1e-6)


def test_an_unused_argument_has_a_gradient_of_zero():
    unused = keras.Variable(np.ones((2, 2), "float32"))
    by_input, by_variable = current().compute.compute_gradients(
        lambda x, y: ops.sum(x), [LEFT, RIGHT], [unused]
    )
    np.testing.assert_array_equal(by_input[1], np.zeros(3))
    np.testing.assert_array_equal(by_variable[0], np.zeros((2, 2)))


def test_a_function_of_nothing_at_all_has_gradients_of_zero():
    by_input, by_variable = current().compute.compute_gradients(
        lambda x: ops.sum(ops.stop_gradient(x)), [LEFT], []
    )
    np.testing.assert_array_equal(by_input[0], np.zeros(3))
    assert by_variable == []


def test_the_gradient_of_an_embedding_is_dense():
    table = keras.Variable(np.ones((4, 2), "float32"))
    _, (gradient,) = current().compute.compute_gradients(
        lambda x: ops.sum(ops.take(table, [1, 1, 3], axis=0)) + ops.sum(x), [LEFT], [table]
    )
    np.testing.assert_array_equal(gradient, [[0, 0], [2, 2], [0, 0], [1, 1]])


def test_neither_inputs_nor_variables_are_changed():
    weight = keras.Variable(RIGHT)
    x = LEFT.copy()
    current().compute.compute_gradients(lambda x: ops.sum(x * weight), [x], [weight])
    np.testing.assert_array_equal(x, LEFT)
    np.testing.assert_array_equal(ops.convert_to_numpy(weight), RIGHT)


def double(x, y, labels):
    return 2 * x * y * ops.cast(labels, "float32")


def point_up(upstream, x, y, labels):
    """Not the gradient of `double`, so that it is seen which of the two is taken."""
    return upstream + x, upstream * ops.cast(labels, "float32")


LABELS = np.array([1, 2, 3], "int32")


DIRECTION = np.array([1.0, 0.5, 2.0], "float32")


def call_with_gradient(x, y):
    labels = ops.convert_to_tensor(LABELS)
    results = current().compute.apply_with_gradient(double, point_up, [x, y], [labels])
    return ops.sum(ops.multiply(results, DIRECTION))


def test_a_gradient_that_is_given_is_taken():
    x, y = (ops.convert_to_tensor(array) for array in (LEFT, RIGHT))
    assert float(call_with_gradient(x, y)) == pytest.approx(
        (2 * LEFT * RIGHT * LABELS * DIRECTION).sum()
    )
    (by_x, by_y), _ = current().compute.compute_gradients(call_with_gradient, [LEFT, RIGHT], [])
    np.testing.assert_allclose(by_x, DIRECTION + LEFT, rtol=1e-6)
    np.testing.assert_allclose(by_y, DIRECTION * LABELS, rtol=1e-6)


def test_a_recomputed_function_has_its_gradient():
    """As in a layer that a `keras.RematScope` is around."""
    (by_x, by_y), _ = current().compute.compute_gradients(
        keras.remat(call_with_gradient), [LEFT, RIGHT], []
    )
    np.testing.assert_allclose(by_x, DIRECTION + LEFT, rtol=1e-6)
    np.testing.assert_allclose(by_y, DIRECTION * LABELS, rtol=1e-6)


def top_k(values, k):
    tensors = backend.current().compute.top_k(keras.ops.convert_to_tensor(values), k)
    return [keras.ops.convert_to_numpy(tensor) for tensor in tensors]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_come_first_and_of_equals_the_first(dtype):
    if keras.backend.backend() == "jax" and dtype == "float64":
        pytest.skip("JAX has no float64 unless it is asked for.")
    rng = np.random.default_rng(0)
    values = rng.integers(-3, 4, (5, 2, 300)).astype(dtype)
    values[values == 0] *= rng.choice([-1.0, 1.0], (values == 0).sum())  # Zeros of either sign.
    values[0, 0, :5] = [np.finfo(dtype).max, -np.finfo(dtype).max, 1e-38, -1e30, 1e30]
    for k in (1, 7, 300):
        largest, indices = top_k(values, k)
        expected = np.argsort(-values, axis=-1, kind="stable")[..., :k]
        assert indices.dtype == "int32"
        np.testing.assert_array_equal(np.sort(indices), np.sort(expected))
        np.testing.assert_array_equal(largest, np.take_along_axis(values, expected, -1))
        np.testing.assert_array_equal(largest, np.take_along_axis(values, indices, -1))


def test_further_numbers_that_are_smaller_change_nothing():
    values = np.repeat(np.float32([0, 1]), [200, 10])[None]
    longer = np.concatenate([values, np.full((1, 777), -1, "float32")], axis=-1)
    chosen = [np.sort(top_k(array, 64)[1]) for array in (values, longer)]
    np.testing.assert_array_equal(*chosen)


def test_the_gradient_goes_to_the_largest():
    def total(values):
        return keras.ops.sum(backend.current().compute.top_k(values, 2)[0])

    values = np.float32([[1, 3, 3, 2, 3]])
    (gradient,), _ = backend.current().compute.compute_gradients(total, [values], [])
    np.testing.assert_array_equal(gradient, [[0, 1, 1, 0, 0]])


def test_only_what_is_measured_to_be_faster_is_fused():
    single, half = (keras.ops.ones((1, 2, 2, 4), dtype) for dtype in ("float32", "bfloat16"))
    assert not backend.current().compute.fuses_attention(single)  # On a CPU, where the tests run.
    assert backend.current().compute.fuses_attention(half) == (keras.backend.backend() == "torch")
    assert backend.current().compute.query_block_size(single) in (128, 256)


@pytest.mark.parametrize(
    "value", [7, np.int64(7), np.array(7), keras.ops.convert_to_tensor(7, "int32")]
)
def test_a_number_that_is_there_is_read(value):
    assert backend.current().compute.read_integer(value) == 7


def test_a_number_that_is_only_traced_reads_as_none():
    read = []

    class Reader(keras.Layer):
        def call(self, inputs):
            read.append(backend.current().compute.read_integer(inputs))
            return inputs

    Reader()(keras.Input((), dtype="int32"))  # Keras infers shapes by tracing.
    assert set(read) == {None}


def test_a_number_that_keras_makes_up_for_want_of_one_reads_as_none():
    read = []

    class Reader(keras.Layer):
        def call(self, inputs):
            if getattr(inputs, "is_meta", False):
                raise NotImplementedError  # As many operations of PyTorch; Keras then tries ones.
            read.append(backend.current().compute.read_integer(inputs[0, 0]))
            read.append(backend.current().compute.read_array(inputs))
            return inputs

    Reader()(keras.Input((2,), dtype="int32"))
    assert set(read) == {None}


def test_shapes_may_follow_from_numbers_where_they_are_there_and_no_shape_is_compiled():
    may = backend.current().compute.can_read_shapes(keras.ops.convert_to_tensor([1, 2], "int32"))
    assert may == (keras.backend.backend() != "jax")


def test_shapes_may_not_follow_from_what_is_only_traced():
    may = []

    class Reader(keras.Layer):
        def call(self, inputs):
            may.append(backend.current().compute.can_read_shapes(inputs))
            return inputs

    Reader()(keras.Input((), dtype="int32"))
    assert set(may) == {False}


def test_the_numbers_of_a_tensor_are_read_where_the_host_holds_them():
    value = keras.ops.convert_to_tensor([[True, False]], "bool")
    np.testing.assert_array_equal(backend.current().compute.read_array(value), [[True, False]])


def test_the_numbers_of_what_is_only_traced_are_not_read():
    read = []

    class Reader(keras.Layer):
        def call(self, inputs):
            read.append(backend.current().compute.read_array(inputs))
            return inputs

    Reader()(keras.Input((2,), dtype="bool"))
    assert set(read) == {None}


def add_up(index, total, count):
    return total * 2 + ops.cast(index, "float32"), count + 1


def test_a_loop_hands_its_state_on():
    state = (ops.ones((2,)), ops.zeros((), "int32"))
    total, count = current().compute.repeat(add_up, 3, state)
    np.testing.assert_allclose(ops.convert_to_numpy(total), [12.0, 12.0])
    assert int(count) == 3


def test_a_loop_of_no_runs_returns_the_state():
    state = (ops.ones((2,)), ops.zeros((), "int32"))
    total, count = current().compute.repeat(add_up, 0, state)
    np.testing.assert_array_equal(ops.convert_to_numpy(total), [1.0, 1.0])
    assert int(count) == 0


def in_a_step(function, variables):
    """Runs a function as Keras's loop runs a step, and returns the values of variables."""
    if keras.backend.backend() != "jax":
        function()
        return [float(ops.convert_to_numpy(variable.value)) for variable in variables]
    import jax

    @jax.jit
    def run(values):
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            function()
        return [scope.get_current_value(variable) for variable in variables]

    return [float(value) for value in run([variable.value for variable in variables])]


def test_a_loop_assigns_variables():
    total, factor = keras.Variable(1.0), keras.Variable(2.0)

    def body(index, count):
        total.assign(total * factor)
        return (count + 1,)

    def run():
        (count,) = current().compute.repeat(body, 3, (ops.zeros((), "int32"),), [total])
        total.assign_add(ops.cast(count, "float32"))

    assert in_a_step(run, [total, factor]) == [11.0, 2.0]


@pytest.mark.parametrize(("condition", "expected"), [(True, [3.0, 2.0]), (False, [1.0, 2.0])])
def test_a_conditional_function_runs_only_on_its_condition(condition, expected):
    total, term = keras.Variable(1.0), keras.Variable(2.0)

    def add():
        total.assign_add(term)

    def run():
        current().compute.run_if(ops.convert_to_tensor(condition), add, [total])

    assert in_a_step(run, [total, term]) == expected


def test_steps_that_do_not_count_are_stacked_as_zeros():
    def run(state, count):
        rows = ops.ones((2, 3))
        blocks = current().compute.stack(
            lambda index: rows * (ops.cast(index, "float32") + 1), count, 4
        )
        return blocks, state

    stacked, _ = current().inference.compile_with_state(run, [])(None, np.int32(3))
    expected = np.array([1, 2, 3, 0], "float32")[:, None, None] * np.ones((4, 2, 3), "float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(stacked), expected)


def test_blocks_are_looped_over_only_where_no_gradient_is_asked_for():
    answers = []

    def run(state):
        answers.append(current().compute.loops_over_blocks())
        return ops.ones(()), state

    current().inference.compile_with_state(run, [])(None)
    assert answers[-1] == (keras.backend.backend() != "torch")
    assert not current().compute.loops_over_blocks()


def make_numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("source_dtype", ["float32", "float16", "bfloat16", "float64"])
def test_values_come_in_every_dtype(dtype, source_dtype):
    variable = keras.Variable(np.zeros((3, 5)), dtype=dtype)
    there = {"bfloat16": ml_dtypes.bfloat16}
    source = make_numbers(3, 5).astype(there.get(source_dtype, source_dtype))
    current().compute.assign_array(variable, source)
    expected = source.astype(there.get(dtype, dtype))
    assert variable.dtype == dtype
    assert np.array_equal(
        keras.ops.convert_to_numpy(variable).astype("float32"), expected.astype("float32")
    )


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (7,), (7, 3), (2, 3, 4)])
def test_values_come_in_pieces(shape, monkeypatch):
    monkeypatch.setattr(array_pieces, "PIECE_BYTES", 16)
    variable = keras.Variable(np.zeros(shape, "float32"))
    current().compute.assign_array(variable, make_numbers(*shape))
    assert np.array_equal(keras.ops.convert_to_numpy(variable), make_numbers(*shape))


def test_integers_come_as_they_are():
    variable = keras.Variable(np.zeros(4), dtype="int32", trainable=False)
    current().compute.assign_array(variable, np.arange(4))
    assert keras.ops.convert_to_numpy(variable).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("view", [np.transpose, np.flipud, lambda x: x[:, ::2]])
def test_a_view_is_read_in_its_own_order(view):
    source = make_numbers(4, 6)
    variable = keras.Variable(np.zeros(view(source).shape, "float32"))
    current().compute.assign_array(variable, view(source))
    assert np.array_equal(keras.ops.convert_to_numpy(variable), view(source))


def test_the_memory_that_values_came_from_may_change_afterwards():
    source = make_numbers(64, 64)
    expected = source.copy()
    source.flags.writeable = False
    variable = keras.Variable(np.zeros((64, 64), "float32"))
    current().compute.assign_array(variable, source)
    source.flags.writeable = True
    source[:] = 0.0
    assert np.array_equal(keras.ops.convert_to_numpy(variable), expected)


def test_values_read_by_index_are_read_in_pieces(monkeypatch):
    monkeypatch.setattr(array_pieces, "PIECE_BYTES", 64)

    class Source:
        shape, dtype = (6, 4), np.dtype("float32")
        largest = 0

        def __getitem__(self, index):
            piece = make_numbers(6, 4)[index]
            self.largest = max(self.largest, piece.size)
            return piece

    source = Source()
    variable = keras.Variable(np.zeros((6, 4), "float32"))
    current().compute.assign_array(variable, source)
    assert np.array_equal(keras.ops.convert_to_numpy(variable), make_numbers(6, 4))
    assert source.largest <= 16


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_variable_begins_unset_and_is_updated_as_any_other(dtype):
    variable = keras.Variable(current().compute.unset_initializer(), shape=(3, 5), dtype=dtype)
    assert variable.dtype == dtype
    assert not np.any(keras.ops.convert_to_numpy(variable))
    source = np.arange(15.0).reshape(3, 5)
    current().compute.assign_array(variable, source)
    old_value = variable.value * 1
    variable.assign_add(keras.ops.ones((3, 5), dtype))
    keras.optimizers.SGD(2.0).apply([keras.ops.ones((3, 5), dtype)], [variable])
    updated = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))
    assert np.array_equal(updated, source - 1)
    assert np.array_equal(keras.ops.convert_to_numpy(keras.ops.cast(old_value, "float32")), source)


def read_megabytes(name):
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def measure_peak(function):
    """The megabytes that a function takes at the most, and what it returns."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    megabytes = read_megabytes("VmRSS")
    result = function()
    return read_megabytes("VmHWM") - megabytes, result


SHAPE = (128, 2**18)  # 128 MiB.


SOURCE = np.broadcast_to(np.arange(2**18, dtype="float32"), SHAPE)


counts_the_peak = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux counts the peak."
)


@counts_the_peak
@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="TensorFlow keeps the old until it has the new."
)
def test_the_new_values_never_stand_beside_the_old_ones():
    variable = keras.Variable("ones", shape=SHAPE)
    peak, _ = measure_peak(lambda: current().compute.assign_array(variable, SOURCE))
    assert peak < 64
    assert keras.ops.convert_to_numpy(variable)[-1, -1] == 2**18 - 1


@counts_the_peak
def test_a_variable_that_was_unset_takes_memory_once():
    def make():
        variable = keras.Variable(current().compute.unset_initializer(), shape=SHAPE)
        current().compute.assign_array(variable, SOURCE)
        return variable

    peak, variable = measure_peak(make)
    assert peak < 128 + 64
    assert keras.ops.convert_to_numpy(variable)[-1, -1] == 2**18 - 1
