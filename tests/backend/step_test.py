import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend import current
from keras_deepseek.training.checkpoints.training_state import read_variables, write_variables


def test_the_gradients_of_what_assigns_variables_come_with_its_other_results():
    weight, count = (
        keras.Variable(np.array([2.0, 3.0], "float32")),
        keras.Variable(1.0, trainable=False),
    )
    unused = keras.Variable(5.0)

    def compute():
        count.assign_add(1.0)
        return ops.sum(weight * weight) * count, {"count": count + 10.0}

    aux, backward = current().step.differentiate(compute, [weight, unused], [count])
    assert float(aux["count"]) == 12.0
    by_weight, by_unused = backward()
    assert float(ops.convert_to_numpy(count.value)) == 2.0
    np.testing.assert_allclose(ops.convert_to_numpy(by_weight), [8.0, 12.0], rtol=1e-6)
    assert by_unused is None or float(by_unused) == 0.0


def test_a_backward_pass_may_be_scaled_and_may_tell_of_gradients_before_it_ends():
    first, second = (keras.Variable(np.array([2.0, 3.0], "float32")) for _ in range(2))
    gradients_by_index = {}

    def compute():
        return ops.sum(first * second) + ops.sum(first), None

    _, backward = current().step.differentiate(compute, [first, second], [])
    returned = backward(ops.convert_to_tensor(0.5), gradients_by_index.__setitem__)
    for index, expected in enumerate([[1.5, 2.0], [1.0, 1.5]]):
        assert (index in gradients_by_index) != (returned[index] is not None)
        gradient = gradients_by_index.get(index, returned[index])
        np.testing.assert_allclose(ops.convert_to_numpy(gradient), expected)
    assert len(gradients_by_index) == (2 if keras.backend.backend() == "torch" else 0)
    if keras.backend.backend() == "torch":
        assert first.value.grad is None


def test_a_scalar_that_depends_on_nothing_has_no_gradients():
    variable = keras.Variable(np.ones(2, "float32"))
    _, backward = current().step.differentiate(lambda: (ops.ones(()), None), [variable], [])
    assert backward(2.0) == [None]


X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


def build():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def test_a_step_takes_the_place_of_keras_s_own():
    model = build()

    def step(data):
        (weight, *_), (total,) = model.trainable_variables, model.metrics_variables[:1]
        weight.assign(weight * 0.0 + 7.0)
        total.assign_add(1.0)
        model.optimizer.iterations.assign_add(2)
        return {"rows": ops.cast(ops.shape(data[0])[0], "float32")}

    model.train_step = current().step.make_train_step(model, step)
    history = model.fit(X, X[:, :1], batch_size=3, epochs=2, verbose=0).history
    assert history == {"rows": [3.0, 3.0]}
    np.testing.assert_array_equal(model.get_weights()[0], np.full((4, 3), 7.0))
    assert int(model.optimizer.iterations.value) == 8
    assert float(model.metrics_variables[0].value) == 2.0


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="On torch no step is compiled.")
def test_what_is_run_before_a_step_may_assign_the_optimizer_s_variables():
    model = build()

    def double():
        model.optimizer.learning_rate = 2.0 * ops.convert_to_tensor(model.optimizer.learning_rate)

    model.train_step = current().step.run_before_step(model, model.train_step, double)
    model.fit(X, X[:, :1], batch_size=3, epochs=2, verbose=0)
    assert float(ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(1.6)
    assert int(model.optimizer.iterations) == 4


@pytest.mark.parametrize("fails", ["step", "data"])
def test_after_an_error_a_model_has_its_weights(fails):
    model = build()
    model.fit(X, X[:, :1], verbose=0)
    old_weights = model.get_weights()
    own_step = model.train_step

    def make_train_function(force=False):
        model.train_function = current().step.make_train_function(model, list, force=force)

    def step(*arguments):
        if fails == "step":
            raise ArithmeticError("failed")
        return own_step(*arguments)

    class Callback(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            assert self.model  # On JAX this takes the state out of Keras's loop.

    def batches():
        yield X, X[:, :1]
        raise ArithmeticError("failed")

    model.make_train_function, model.train_step = make_train_function, step
    model.train_function = None
    with pytest.raises(Exception, match="failed"):
        model.fit(batches(), verbose=0, shuffle=False, callbacks=[Callback()])
    new_weights = model.get_weights()
    if fails == "step":
        for new_weight, old_weight in zip(new_weights, old_weights, strict=True):
            np.testing.assert_array_equal(new_weight, old_weight)
    assert np.isfinite(model.predict(X, verbose=0)).all()


def test_the_end_of_the_data_is_told_from_errors():
    assert current().step.is_end_of_data(StopIteration())
    assert not current().step.is_end_of_data(ValueError())


def test_variables_that_share_their_memory_get_their_own():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(use_ema=True), "mse")
    x = np.ones((8, 4), "float32")
    model.fit(x, x[:, :1], verbose=0)  # Moving averages have become the weights.
    old_weights = model.get_weights()
    current().step.separate_variables(model)
    values = [variable.value for variable in (*model.variables, *model.optimizer.variables)]
    assert len({id(value) for value in values}) == len(values)
    for weight, old_weight in zip(model.get_weights(), old_weights, strict=True):
        np.testing.assert_array_equal(weight, old_weight)
    model.fit(x, x[:, :1], verbose=0)


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, beta_1=0.8, epsilon=1e-3),
    "decay": lambda: keras.optimizers.Adam(0.01, weight_decay=0.1),
    "clip": lambda: keras.optimizers.AdamW(0.01, global_clipnorm=0.5),
    "average": lambda: keras.optimizers.AdamW(0.01, use_ema=True, ema_overwrite_frequency=3),
    "accumulate": lambda: keras.optimizers.AdamW(0.01, gradient_accumulation_steps=2),
    "schedule": lambda: keras.optimizers.AdamW(
        keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    ),
    "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("factor", [None, 0.25])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_that_of_keras(name, factor):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(5, 12)).astype("float32")
    results = []
    for use_ours in (False, True):
        optimizer = OPTIMIZERS[name]()
        variables = [
            keras.Variable(np.ones((3, 4), "float32"), name="kernel"),
            keras.Variable(np.ones((12,), "float32"), name="bias"),
            keras.Variable(np.ones((2,), "float32"), name="unused"),
        ]
        optimizer.build(variables)
        if optimizer.weight_decay:
            optimizer.exclude_from_weight_decay(var_names=["bias"])
        for step in gradients:
            tensors = [ops.convert_to_tensor(step.reshape(3, 4)), ops.convert_to_tensor(step), None]
            with warnings.catch_warnings():  # Keras warns of what has no gradient.
                warnings.simplefilter("ignore")
                if use_ours:
                    scale = None if factor is None else ops.convert_to_tensor(factor, "float32")
                    current().step.apply_update(optimizer, tensors, variables, scale)
                else:
                    optimizer.apply([_multiply(tensor, factor) for tensor in tensors], variables)
        results.append([ops.convert_to_numpy(v) for v in [*variables, *optimizer.variables]])
    for by_keras, by_step in zip(*results, strict=True):
        np.testing.assert_allclose(by_keras, by_step, rtol=1e-5, atol=1e-7)


def _multiply(gradient, factor):
    return gradient if gradient is None or factor is None else gradient * factor


def test_gradients_that_are_one_tensor_are_multiplied_once():
    variables = [keras.Variable(np.ones((4,), "float32")) for _ in range(2)]
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(variables)
    gradient = ops.convert_to_tensor(np.array([1.0, -2.0, 3.0, 0.5], "float32"))
    current().step.apply_update(
        optimizer, [gradient, gradient], variables, ops.convert_to_tensor(0.5)
    )
    first, second = (ops.convert_to_numpy(slot) for slot in optimizer._momentums)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, [0.05, -0.1, 0.15, 0.025], rtol=1e-6)


# JAX has no float64 unless it is told to.
DTYPES = ["float32", "bfloat16", *(["float64"] if keras.backend.backend() != "jax" else [])]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_of_all_gradients(dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype("float32") for shape in ((3, 4), (5,), (2, 3, 4), ())]
    tensors = [ops.cast(ops.convert_to_tensor(array), dtype) for array in arrays]
    rounded = [ops.convert_to_numpy(ops.cast(tensor, "float32")) for tensor in tensors]
    squares = [np.square(array.astype("float64")).sum() for array in rounded]
    norm = current().step.global_norm(tensors)
    assert keras.backend.standardize_dtype(norm.dtype) == "float32"
    np.testing.assert_allclose(ops.convert_to_numpy(norm), np.sqrt(sum(squares)), rtol=1e-6)


def test_the_norm_of_many_numbers_is_exact():
    array = np.random.default_rng(0).normal(size=(20_000, 256)).astype("float32")
    norm = ops.convert_to_numpy(current().step.global_norm([ops.convert_to_tensor(array)]))
    expected = np.sqrt(np.square(array.astype("float64")).sum())
    np.testing.assert_allclose(norm, expected, rtol=2e-5)


def test_the_norm_of_each_tensor():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype("float32") for shape in ((3, 4), (5,), (2, 3, 4), ())]
    tensors = [ops.convert_to_tensor(array) for array in arrays]
    norms, total = (ops.convert_to_numpy(norm) for norm in current().step.norms(tensors))
    expected = [np.sqrt(np.square(array.astype("float64")).sum()) for array in arrays]
    np.testing.assert_allclose(norms, expected, rtol=1e-6)
    assert total == ops.convert_to_numpy(current().step.global_norm(tensors))


def test_weights_that_change_between_two_updates_count_as_weights_alone():
    variables = [keras.Variable([3.0, 4.0]), keras.Variable([[1.0, 2.0], [2.0, 4.0]])]
    change = current().step.make_weight_change()

    def update(amount):
        sizes = change.begin(variables)
        for variable in variables:
            variable.assign(variable + amount)
        return [ops.convert_to_numpy(norms).tolist() for norms in (sizes, change.end(variables))]

    assert update(1.0) == [[5.0, 5.0], [pytest.approx(2**0.5), 2.0]]
    assert update(0.0) == [[pytest.approx(41**0.5), pytest.approx(47**0.5)], [0.0, 0.0]]
    variables[0].assign([0.0, 2.0])  # By a callback, or from a checkpoint.
    assert update(2.0) == [
        [2.0, pytest.approx(47**0.5)],
        [pytest.approx(8**0.5), 4.0],
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_which_tensors_are_finite(dtype):
    arrays = [np.ones((2, 3)), np.array([1, np.nan]), np.array(-np.inf), np.zeros(0), np.array(3.0)]
    tensors = [ops.cast(ops.convert_to_tensor(array), dtype) for array in arrays]
    assert current().step.find_finite(tensors) == [True, False, False, True, True]
    assert current().step.find_finite([]) == []


@pytest.mark.parametrize("name", ["adamw", "schedule", "sgd"])
def test_a_compiled_update_is_that_of_keras(name):
    rng = np.random.default_rng(0)
    results = []
    for use_ours in (False, True):
        optimizer = OPTIMIZERS[name]()
        variables = [
            keras.Variable(np.ones((3, 4), "float32"), name="kernel"),
            keras.Variable(np.ones((2,), "float32"), name="unused"),
        ]
        optimizer.build(variables)
        update = current().step.compile_update(optimizer, variables)
        with warnings.catch_warnings():  # Keras warns of what has no gradient.
            warnings.simplefilter("ignore")
            for gradient in rng.normal(size=(3, 3, 4)).astype("float32"):
                if use_ours:
                    update([gradient, None])
                else:
                    optimizer.apply([ops.convert_to_tensor(gradient), None], variables)
        rng = np.random.default_rng(0)
        results.append([ops.convert_to_numpy(v) for v in [*variables, *optimizer.variables]])
    for by_keras, by_update in zip(*results, strict=True):
        np.testing.assert_allclose(by_keras, by_update, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_rows_of_an_embedding_that_a_batch_names_twice_are_added_before_they_are_squared(name):
    """Keras's own update on TensorFlow adds the squares of a sparse gradient's rows."""
    table = keras.Variable(np.ones((5, 2), "float32"), name="embeddings")
    dense = keras.Variable(np.ones((5, 2), "float32"), name="embeddings")
    indices = np.array([[1, 1, 3, 1], [4, 0, 4, 2]])
    scales = np.array([0.5, 2.0, 1.0, 3.0], "float32")[:, None]
    optimizers = [OPTIMIZERS[name](), OPTIMIZERS[name]()]
    for optimizer, variable in zip(optimizers, (table, dense), strict=True):
        optimizer.build([variable])
    for rows in indices:

        def compute(rows=rows):
            return ops.sum(ops.multiply(ops.take(table, rows, axis=0), scales)), None

        _, backward = current().step.differentiate(compute, [table], [])
        current().step.apply_update(optimizers[0], backward(), [table])
        whole = np.zeros((5, 2), "float32")
        np.add.at(whole, rows, np.broadcast_to(scales, (4, 2)))
        optimizers[1].apply([ops.convert_to_tensor(whole)], [dense])
    by_rows, by_keras = (ops.convert_to_numpy(variable) for variable in (table, dense))
    np.testing.assert_allclose(by_rows, by_keras, rtol=1e-6)


def test_multiples_are_added_to_sums():
    sums = [ops.ones((2, 3)), ops.zeros(4)]
    tensors = [ops.full((2, 3), 2.0), ops.arange(4, dtype="float32")]
    added = current().step.add_multiples(sums, tensors, ops.convert_to_tensor(0.5))
    added = current().step.add_multiples(added, tensors, 1.0)
    np.testing.assert_array_equal(ops.convert_to_numpy(added[0]), np.full((2, 3), 4.0))
    np.testing.assert_array_equal(ops.convert_to_numpy(added[1]), 1.5 * np.arange(4))
    np.testing.assert_array_equal(ops.convert_to_numpy(tensors[0]), 2.0)


SPECS = (keras.KerasTensor((2, 3)), {"label": keras.KerasTensor((2,), "int32")}, None)


def batches():
    for index in range(3):
        rows = 2 if index < 2 else 1
        x = np.full((rows, 3), index, "float32")
        yield x, {"label": np.full(rows, index, "int32")}, None


def test_keras_is_fed_batch_by_batch_as_often_as_it_begins():
    fed = [current().step.feed_batches(batches, SPECS) for _ in range(2)]
    for iterable in fed:
        received = [
            (keras.ops.convert_to_numpy(x), keras.ops.convert_to_numpy(y["label"]))
            for x, y, *_ in iterable
        ]
        assert [x[0, 0] for x, _ in received] == [0, 1, 2]
        assert [len(y) for _, y in received] == [2, 2, 1]


def test_nothing_runs_ahead():
    drawn = []

    def counted():
        for batch in batches():
            drawn.append(batch)
            yield batch

    iterator = iter(current().step.feed_batches(counted, SPECS))
    next(iterator)
    assert len(drawn) == 1
    next(iterator)
    assert len(drawn) == 2


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="The others hand arrays on.")
def test_tensors_of_pytorch_are_those_that_keras_makes():
    names = ["bool", "uint8", "int16", "uint32", "int64", "float16", "float64"]
    arrays = [np.ones(2, name) for name in names]
    frozen = np.ones(2)
    frozen.flags.writeable = False
    batch = (*arrays, frozen, keras.ops.ones(2), None)
    (fed,) = current().step.feed_batches(lambda: iter([batch]), None)
    for tensor, leaf in zip(fed[:-1], batch[:-1], strict=True):
        expected = keras.ops.convert_to_tensor(leaf)
        assert (tensor.dtype, tensor.tolist()) == (expected.dtype, expected.tolist())
    assert fed[-1] is None


def test_batches_of_pytorch_s_loader_are_handed_on_by_keras_itself():
    is_torch = keras.backend.backend() == "torch"
    assert current().step.prefers_own_feed(np.ones(2)) == is_torch
    if is_torch:
        import torch

        assert not current().step.prefers_own_feed(torch.utils.data.DataLoader([1]))


def test_a_model_of_keras_s_own_layers_has_nothing_beside_its_variables(convolutional):
    assert current().step.read_buffers(convolutional) == {}
    current().step.write_buffers(convolutional, {})


def test_the_buffers_of_pytorch_s_modules_are_read_and_put_back():
    torch = pytest.importorskip("torch")
    if keras.backend.backend() != "torch":
        pytest.skip("Only Keras on PyTorch takes its modules as layers.")

    def trained(seed):
        x = np.random.default_rng(seed).normal(size=(8, 3)).astype("float32")
        module = keras.layers.TorchModuleWrapper(torch.nn.BatchNorm1d(3))
        model = keras.Sequential([keras.Input((3,)), module, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(x, x[:, :1], verbose=0)
        return model

    first, second = trained(1), trained(2)
    buffers = current().step.read_buffers(first)
    assert any(name.endswith("running_mean") for name in buffers)
    write_variables(second, read_variables(first))
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(second.predict(x, verbose=0), first.predict(x, verbose=0))
    old_buffers = {name: buffer.copy() for name, buffer in buffers.items()}
    first.fit(x, x[:, :1], verbose=0)
    for name, buffer in buffers.items():
        np.testing.assert_array_equal(buffer, old_buffers[name])
