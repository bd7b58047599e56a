"""An optimized model is used like the original: trained, saved, called by threads, and so on."""

import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_deepseek import graph
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.errors import InvalidInputError


def classifier(length=None, dropout=0.0):
    """Returns an encoder that reads its first row."""
    inputs = keras.Input((length, 8))
    y = layers.MultiHeadAttention(2, 4, dropout=dropout)(inputs, inputs)
    x = layers.LayerNormalization()(inputs + y)
    x = x + layers.Dense(8, activation="gelu")(x)
    return keras.Model(inputs, layers.Dense(3)(x[:, 0]))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def check_equal(model, optimized, inputs, atol=1e-5):
    for expected, received in zip(
        keras.tree.flatten(model(inputs)), keras.tree.flatten(optimized(inputs)), strict=True
    ):
        np.testing.assert_allclose(
            ops.convert_to_numpy(ops.cast(received, "float32")),
            ops.convert_to_numpy(ops.cast(expected, "float32")),
            atol=atol,
        )


def optimize(model, inputs, **kwargs):
    optimized = graph.optimize(model, inputs, measure=False, **kwargs)
    assert optimized.report.failure is None
    return optimized


def test_batch_sizes_and_lengths_that_were_never_traced_are_run_by_a_program():
    model = classifier()
    optimized = optimize(model, draw(2, 5, 8))
    assert optimized.report.operations[1] <= optimized.report.operations[0]
    for shape in [(7, 5, 8), (1, 9, 8)]:
        inputs = ops.convert_to_tensor(draw(*shape))
        check_equal(model, optimized, inputs)
        assert optimized.has_program(inputs)
    assert len({id(plan) for plan in optimized._plans._plans.values()}) == 1


def test_fit_with_a_ragged_last_batch_trains_the_original():
    model = classifier(6)
    optimized = optimize(model, draw(4, 6, 8), mode="train")
    targets = draw(10, 3, seed=1)
    optimized.compile("sgd", "mse")
    optimized.fit(draw(10, 6, 8), targets, batch_size=4, epochs=2, verbose=0, shuffle=False)
    trained = model.get_weights()
    fresh = keras.models.clone_model(model)
    assert optimized.predict(draw(5, 6, 8), verbose=0, batch_size=3).shape == (5, 3)
    check_equal(model, optimized, ops.convert_to_tensor(draw(3, 6, 8)))
    assert [array.shape for array in fresh.get_weights()] == [array.shape for array in trained]


def test_fit_takes_the_steps_of_the_original():
    model = classifier(6)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    optimized = optimize(model, draw(4, 6, 8), mode="train")
    for trained_model in (optimized, twin):
        trained_model.compile(keras.optimizers.SGD(0.1), "mse")
        trained_model.fit(
            draw(10, 6, 8), draw(10, 3, seed=1), batch_size=4, verbose=0, shuffle=False
        )
    for received, expected in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(received, expected, atol=1e-5)


def test_saved_and_loaded(tmp_path):
    model = classifier()
    optimized = optimize(model, draw(2, 5, 8))
    optimized.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    inputs = ops.convert_to_tensor(draw(3, 5, 8))
    check_equal(model, loaded, inputs)
    assert loaded.has_program(inputs)
    assert loaded.passes == optimized.passes
    assert loaded.plan().rewrites == optimized.report.rewrites


def test_weights_that_are_assigned_or_loaded_need_no_refresh(tmp_path):
    model = classifier()
    optimized = optimize(model, draw(2, 5, 8))
    inputs = ops.convert_to_tensor(draw(2, 5, 8))
    model.set_weights([array + 0.1 for array in model.get_weights()])
    check_equal(model, optimized, inputs)
    model.save_weights(tmp_path / "a.weights.h5")
    model.set_weights([array * 0.5 for array in model.get_weights()])
    model.load_weights(tmp_path / "a.weights.h5")
    check_equal(model, optimized, inputs)


def test_weights_files_are_those_of_the_original(tmp_path):
    model, other = classifier(5), classifier(5)
    optimized = optimize(model, draw(2, 5, 8))
    optimized.save_weights(tmp_path / "a.weights.h5")
    other.load_weights(tmp_path / "a.weights.h5")
    other.set_weights([array + 0.1 for array in other.get_weights()])
    other.save_weights(tmp_path / "b.weights.h5")
    optimized.load_weights(tmp_path / "b.weights.h5")
    for received, expected in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)


def test_layers_and_shapes_are_those_of_the_original(capsys):
    model = classifier(5)
    optimized = optimize(model, draw(2, 5, 8))
    assert optimized.get_layer(model.layers[-1].name) is model.layers[-1]
    assert (optimized.input_shape, optimized.output_shape) == ((None, 5, 8), (None, 3))
    optimized.summary()
    assert model.layers[-1].name in capsys.readouterr().out


class OwnLoss(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)

    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs) * 2.0


def test_a_model_with_its_own_loss_or_step_is_not_compiled():
    model = OwnLoss()
    model(draw(2, 4))
    optimized = graph.optimize(model, draw(2, 4), measure=False)
    with pytest.raises(InvalidInputError, match=r"compute_loss.*optimize_graph=True"):
        optimized.compile("sgd", "mse")


@pytest.mark.parametrize("make", [lambda: classifier(5), OwnLoss], ids=["functional", "subclass"])
def test_the_export_of_keras(tmp_path, monkeypatch, make):
    """Its signature is that of the original, which it can't find by itself."""
    model, x = make(), draw(2, 5, 8)
    model(x)
    exported = {}

    def export(self, path, **kwargs):
        exported.update(kwargs)

    monkeypatch.setattr(keras.Model, "export", export)
    graph.optimize(model, x, measure=False).export(tmp_path / "model")
    (spec,) = exported["input_signature"]
    assert (spec.shape, spec.dtype) == ((None, 5, 8), "float32")


@pytest.mark.tensorflow_alone
def test_the_export_of_keras_to_saved_model(tmp_path):
    import tensorflow as tf

    model = classifier(5)
    optimize(model, draw(2, 5, 8)).export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "model")
    received = loaded.serve(draw(3, 5, 8))
    np.testing.assert_allclose(received, model.predict(draw(3, 5, 8), verbose=0), atol=1e-5)


def test_empty_batches_and_wrong_ranks_run_the_original():
    model = classifier(5)
    optimized = optimize(model, draw(2, 5, 8))
    assert tuple(optimized(draw(0, 5, 8)).shape) == (0, 3)
    with pytest.raises(ValueError, match="is incompatible with the layer"):
        optimized(draw(2, 8))


def test_ten_threads_that_call_while_lengths_are_traced_get_no_symbols():
    model = classifier()
    optimized = optimize(model, draw(2, 5, 8))
    batches = [ops.convert_to_tensor(draw(2, length, 8)) for length in range(3, 9)]
    expected = [ops.convert_to_numpy(model(batch)) for batch in batches]
    wrong = []

    def call(number):
        with optimized._plans._lock.exclusive():
            optimized._plans._plans.clear()
        for index in range(len(batches)):
            shifted = (index + number) % len(batches)
            outputs = optimized(batches[shifted], training=number % 5 == 0)
            if isinstance(outputs, keras.KerasTensor) or not np.allclose(
                ops.convert_to_numpy(outputs), expected[shifted], atol=1e-5
            ):
                wrong.append((number, shifted))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.nightly
def test_threads_may_optimize_one_model_and_call_its_optimized_models():
    model = classifier()
    optimized = optimize(model, draw(2, 5, 8))
    batch = ops.convert_to_tensor(draw(2, 5, 8))
    expected = ops.convert_to_numpy(model(batch))

    def call(number):
        again = graph.optimize(model, draw(2, 5, 8), measure=False) if number % 3 else optimized
        assert again.report.failure is None
        return [ops.convert_to_numpy(again(batch)) for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        for received in pool.map(call, range(8)):
            np.testing.assert_allclose(received, [expected] * 3, atol=1e-5)
    assert not any("symbolic_call" in vars(layer) for layer in flatten_layers(model))


def test_another_policy_after_optimizing_has_a_program_of_its_own():
    model = classifier(5)
    optimized = optimize(model, draw(2, 5, 8))
    inputs = ops.convert_to_tensor(draw(2, 5, 8))
    optimized(inputs)
    for layer in flatten_layers(model):
        layer.dtype_policy = "mixed_bfloat16"
    assert not optimized.has_program(inputs)
    outputs = optimized(inputs)
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    check_equal(model, optimized, inputs, atol=0.05)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float16", "float64"])
def test_policies(policy):
    keras.config.set_dtype_policy(policy)
    model = classifier(5)
    check_equal(model, optimize(model, draw(2, 5, 8)), ops.convert_to_tensor(draw(4, 5, 8)), 0.05)


def test_inputs_of_other_dtypes():
    inputs = keras.Input((4,), dtype="int32")
    model = keras.Model(inputs, layers.Dense(2)(layers.Embedding(9, 3)(inputs)[:, 0]))
    optimized = optimize(model, np.ones((2, 4), "int32"))
    for dtype in ("int32", "int64", "uint8"):
        check_equal(model, optimized, ops.convert_to_tensor(np.full((3, 4), 2, dtype)))


def nested(kind):
    a, b = keras.Input((None, 4), name="a"), keras.Input((None, 4), name="b")
    outputs = {"sum": layers.Dense(3)(a + b)[:, 0], "first": [a * 2.0]}
    structures = {"dict": {"b": b, "a": a}, "list": [a, b], "nested": {"x": [a, {"y": b}]}}
    return keras.Model(structures[kind], outputs)


@pytest.mark.parametrize("kind", ["dict", "list", "nested"])
def test_structures_of_inputs_with_tied_lengths(kind):
    model = nested(kind)

    def batch(rows, length):
        a, b = draw(rows, length, 4), draw(rows, length, 4, seed=1)
        arrays = {"dict": {"b": b, "a": a}, "list": [a, b], "nested": {"x": [a, {"y": b}]}}[kind]
        return keras.tree.map_structure(ops.convert_to_tensor, arrays)

    optimized = optimize(model, batch(2, 5))
    check_equal(model, optimized, batch(3, 7))
    assert optimized.has_program(batch(3, 7))


def test_a_recurrent_model_with_initial_states():
    inputs, state = keras.Input((5, 4)), keras.Input((3,))
    model = keras.Model([inputs, state], layers.GRU(3)(inputs, initial_state=state) * 2.0)
    optimized = optimize(model, [draw(2, 5, 4), draw(2, 3)])
    assert next(iter(optimized.report.leaves.values())).layer_class == "GRU"
    check_equal(model, optimized, [ops.convert_to_tensor(e) for e in (draw(4, 5, 4), draw(4, 3))])


def test_a_stateful_model_goes_on_from_its_state():
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        inputs = keras.Input(batch_shape=(2, 5, 4))
        models.append(keras.Model(inputs, layers.LSTM(3, stateful=True)(inputs) + 1.0))
    model, twin = models
    optimized = graph.optimize(model, draw(2, 5, 4), measure=False)
    for layer in model.layers[1:2]:
        layer.reset_state()
    for _ in range(3):
        check_equal(twin, optimized, ops.convert_to_tensor(draw(2, 5, 4)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.norm = layers.Dense(4), layers.LayerNormalization()

    def call(self, inputs, training=None):
        x = self.norm(self.dense(inputs))
        if inputs.shape[1] > 6:  # A branch by a size.
            x = x * 2.0
        return ops.transpose(ops.transpose(x, (0, 2, 1)), (0, 2, 1))


def test_a_model_with_a_call_of_its_own_is_run_as_it_is():
    model = Subclassed()
    model(draw(2, 5, 3))
    optimized = graph.optimize(model, draw(2, 5, 3), measure=False)
    assert "code that is not known: Subclassed.call" in optimized.report.failure
    for length in (5, 6, 7, 20):
        check_equal(model, optimized, ops.convert_to_tensor(draw(3, length, 3)))


def test_a_sequential_model():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Activation("linear")])
    optimized = optimize(model, draw(2, 4))
    assert optimized.name == model.name
    assert [tuple(symbol.shape) for symbol in optimized.inputs] == [(None, 4)]
    assert (optimized.input.shape, optimized.output.shape) == ((None, 4), (None, 3))
    check_equal(model, optimized, ops.convert_to_tensor(draw(5, 4)))


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
def test_an_input_with_a_keras_mask_runs_the_original():
    model = classifier()
    optimized = optimize(model, draw(2, 5, 8))
    inputs = ops.convert_to_tensor(draw(2, 6, 8))
    optimized(layers.Masking()(inputs))
    assert not optimized.has_program(inputs)
    optimized(inputs)
    assert optimized.has_program(inputs)


def test_the_least_recent_plan_is_dropped(monkeypatch):
    monkeypatch.setattr("keras_deepseek.graph.plans._MOST_PLANS", 2)
    model = classifier()
    optimized = optimize(model, draw(2, 5, 8))
    batches = [ops.convert_to_tensor(draw(2, length, 8)) for length in (3, 4, 6)]
    for index in (0, 1, 0, 2):
        check_equal(model, optimized, batches[index])
    assert [optimized.has_program(batch) for batch in batches] == [True, False, True]


def test_training_of_an_inference_model_runs_the_original():
    model = classifier(5, dropout=0.5)
    optimized = optimize(model, draw(2, 5, 8))
    inputs = ops.convert_to_tensor(draw(2, 5, 8))
    optimized(inputs, training=True)
    assert not optimized.has_program(inputs, training=True)
    with pytest.raises(InvalidInputError, match="runs the original with training=True"):
        optimized.source(training=True)
    assert optimized.source().startswith("def program(x0):")


@pytest.mark.each_backend
def test_a_trace_inside_of_compiled_code():
    """JAX traces `predict`, and TensorFlow calls it with an unknown batch size."""
    model = classifier()
    optimized = optimize(model, draw(2, 5, 8))
    optimized._plans._plans.clear()
    received = optimized.predict(draw(5, 7, 8), batch_size=2, verbose=0)
    np.testing.assert_allclose(received, model.predict(draw(5, 7, 8), verbose=0), atol=1e-5)
    assert optimized._plans._plans
    assert None not in optimized._plans._plans.values()
    check_equal(model, optimized, ops.convert_to_tensor(draw(3, 7, 8)))
