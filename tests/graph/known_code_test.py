"""Layers that users write: `optimize_graph` and `graph.optimize` are never another model.

`tests/oracles/foreign_layers.py` and `user_layers.py` have the layers.
"""

import logging

import keras
import numpy as np
import pytest
from keras import layers

from keras_deepseek import graph
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.deploy import Exporter
from keras_deepseek.errors import ExportError
from keras_deepseek.graph.known_code import find_foreign_code
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.executors.keras_model import KerasModel
from keras_deepseek.training import Trainer
from tests.oracles import user_layers
from tests.oracles.foreign_layers import FACTOR, FORMS
from tests.oracles.user_layers import EXPECTED

pytestmark = pytest.mark.filterwarnings("ignore:.*You are using a softmax over axis:UserWarning")

FEW = ["triples_length_one", "reverses_the_gradient"]
FEW_ON_TORCH = ["keeps_a_running_mean", "counts_values", "draws_without_a_seed", "counts_calls"]
FEW_ADMITTED = ["is_a_model_of_its_own_call", "reads_a_callbacks_attribute", "limits_length"]
LENGTHS = (6, 1) if keras.backend.backend() == "jax" else (6, 1, 3, 9)  # JAX compiles each.


def draw(rows, length):
    return np.random.default_rng(length).normal(size=(rows, length, 4)).astype("float32")


def build(name):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((None, 4), name="inputs")
    x = layers.Dense(4)(x)
    layer = FORMS[name]()
    x = layer(x)
    x = x + layers.Dense(4, use_bias=False)(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(1)(x[:, 0])), layer


class SetFlag(keras.callbacks.Callback):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def on_train_batch_begin(self, batch, logs=None):
        self.layer.flag = float(batch)
        FACTOR["value"] = 1.0 + 0.3 * batch
        user_layers.FACTOR = 1.0 + 0.3 * batch
        if isinstance(self.layer, user_layers.Rich) and keras.backend.backend() == "torch":
            self.layer.config.factor = 0.5 + 0.3 * batch  # Others have compiled it.
        if isinstance(self.layer, layers.LeakyReLU):
            self.layer.negative_slope = 0.3 + 0.3 * batch


def train(name, *, is_eager=False, **options):
    """Returns all that a training at several lengths leaves, and the layer's own attributes.

    On PyTorch a trainer records its steps, but for eager ones.
    """
    FACTOR["value"] = user_layers.FACTOR = 1.0
    model, layer = build(name)
    model.compile(keras.optimizers.SGD(1e-3), "mse", run_eagerly=is_eager)
    trainer = Trainer(model, seed=1, **options)
    numbers = []
    for length in LENGTHS:
        x = draw(12, length)
        history = trainer.fit(
            x, np.ones((12, 1)), batch_size=8, epochs=2, verbose=0, callbacks=[SetFlag(layer)]
        )
        numbers += [history.history["loss"], model.predict(x, verbose=0)]
    state = keras.tree.flatten([getattr(layer, name, 0.0) for name in ("count", "mean", "seen")])
    state = [value for value in state if not isinstance(value, layers.Layer)]
    return [*numbers, *model.get_weights(), *map(np.asarray, state)]


def check_training(name):
    is_torch = keras.backend.backend() == "torch"
    expected = train(name, is_eager=is_torch)
    for options in [{}, {"optimize_graph": True}] if is_torch else [{"optimize_graph": True}]:
        received = train(name, **options)
        for expected_array, received_array in zip(expected, received, strict=True):
            np.testing.assert_allclose(
                received_array, expected_array, rtol=1e-4, atol=1e-5, err_msg=f"{name} {options}"
            )


@pytest.mark.each_backend
def test_code_is_admitted_or_refused_with_its_reason():
    wrong = []
    for name, make in FORMS.items():
        layer = make()
        layer(keras.Input((None, 4)))
        reasons = [
            reason for inner in flatten_layers(layer) if (reason := find_foreign_code(inner))
        ]
        expected = EXPECTED[name]
        is_right = not reasons if expected is None else any(expected in text for text in reasons)
        if not is_right:
            wrong.append((name, expected, reasons))
    assert wrong == []


@pytest.mark.parametrize("names", [FEW, FEW_ON_TORCH, FEW_ADMITTED])
def test_training_by_programs_is_that_of_the_model(names):
    for name in filter(FORMS.get, names):
        check_training(name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", FORMS)
def test_training_of_each_layer_by_programs_is_that_of_the_model(name):
    check_training(name)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:graph.optimize returns the original")
@pytest.mark.parametrize("name", FORMS)
def test_each_layer_is_the_same_at_other_sizes(name):
    model, _ = build(name)
    twin, _ = build(name)
    optimized = graph.optimize(twin, draw(2, 8), measure=False)
    for rows, length in [(2, 8), (2, 1), (1, 8), (3, 5), (1, 1), (6, 11)]:
        x = draw(rows, length)
        np.testing.assert_allclose(
            optimized.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-4, atol=1e-5
        )


class Network(keras.Model):
    """A model that reads one row, with a `call` of its own."""

    def __init__(self):
        super().__init__()
        self.block, self.head = layers.Dense(4), layers.Dense(2)
        self.factor = 1.0

    def call(self, x):
        return self.head((x + self.block(x) * self.factor)[:, 0])


def test_a_model_with_a_call_of_its_own_is_run_by_a_program_of_its_settings():
    model = Network()
    x = keras.ops.convert_to_tensor(draw(3, 6))
    model(x)
    optimized = graph.optimize(model, x, measure=False)
    assert "unread_rows" in optimized.report.rewrites
    for factor in (1.0, 2.0, 2, 1.0):
        model.factor = factor
        np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (optimized(x), model(x))), 1e-5)
        assert optimized.has_program(x)


def scaling(x):
    return 2.0 * x


def test_a_function_that_is_replaced_later_gets_a_program_of_its_own(monkeypatch):
    model = keras.Sequential([keras.Input((6, 4)), layers.Lambda(lambda x: scaling(x)[:, 0])])
    x = keras.ops.convert_to_tensor(draw(3, 6))
    optimized = graph.optimize(model, x, measure=False)
    expected = keras.ops.convert_to_numpy(optimized(x))
    assert optimized.has_program(x)
    monkeypatch.setitem(globals(), "scaling", lambda x: 3.0 * x)
    assert not optimized.has_program(x)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(optimized(x)), 1.5 * expected, 1e-6)


def test_a_source_file_that_was_edited_is_not_trusted(tmp_path):
    path = tmp_path / "edited.py"
    path.write_text("from keras import ops\n\ndef run(x):\n    return ops.tanh(x)\n")
    scope = {"__name__": "edited"}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    layer = layers.Dense(4, activation=scope["run"])
    assert find_foreign_code(layer) is None
    path.write_text("from keras import ops\n\ndef run(x):\n    return ops.relu(x)\n")
    layer = layers.Dense(4, activation=scope["run"])
    assert "no longer that of its code" in find_foreign_code(layer)


def test_a_program_that_differs_later_is_dropped_with_one_line(monkeypatch, caplog):
    """The code of Keras itself is replaced, which no key holds."""
    x = keras.ops.convert_to_tensor(draw(3, 6))
    model = keras.Sequential([keras.Input((6, 4)), layers.Dense(4, name="inner"), layers.Flatten()])
    optimized = graph.optimize(model, x, measure=False)
    optimized(x)
    call = layers.Dense.call

    def other_call(layer, x, **kwargs):
        return call(layer, x, **kwargs) * (1.0 if isinstance(x, keras.KerasTensor) else 2.0)

    monkeypatch.setattr(layers.Dense, "call", other_call)
    with caplog.at_level(logging.WARNING):
        outputs = [optimized(x) for _ in range(3)]
    assert not optimized.has_program(x)
    for output in outputs:
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (output, model(x))))
    (record,) = caplog.records
    assert "inner, which now has code that is not known" in record.getMessage()
    assert "Dense.call, which takes any arguments" in record.getMessage()


class Counting(layers.Layer):
    """A layer that is kept whole, with a layer inside."""

    def __init__(self):
        super().__init__()
        self.inner, self.count = layers.Dense(4), 0

    def call(self, x):
        self.count += 1
        return self.inner(x)


@pytest.mark.each_backend
def test_no_layer_is_copied_for_a_trace(monkeypatch):
    """Within a step of TensorFlow, the copy could not have weights."""
    model = keras.Sequential([keras.Input((6, 4)), Counting(), layers.Dense(1)])
    x = keras.ops.convert_to_tensor(draw(3, 6))
    copies, build = [], layers.Dense.build
    monkeypatch.setattr(
        layers.Dense, "build", lambda layer, shape: (copies.append(layer), build(layer, shape))
    )
    graph.optimize(model, x, measure=False)
    assert copies == []


def assert_same(received, expected):
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMS)
def test_each_layer_is_exported_as_it_is(name, tmp_path):
    model, _ = build(name)
    x = draw(4, 6)
    model(x)  # The first call of some layers differs. A trace of it would stay in `predict`.
    expected = model.predict(x, verbose=0)
    exporter = Exporter(model, "onnx", optimize_graph=True)
    reason = None
    try:
        exporter.export(tmp_path / "1")
    except ExportError as error:
        reason = str(error)
    model.predict(x, verbose=0)  # No attribute of the layer holds a symbol of the trace.
    if reason is not None:
        assert "can't be exported as onnx: through" in reason
        return
    (received,) = exporter.load(tmp_path / "1")({"inputs": x}).values()
    assert_same(received, expected)
    # Full batches: an engine would add rows, on which the outputs of some layers depend.
    with ServingEngine(tmp_path / "1", batch_size=4) as engine:
        assert_same(engine.predict(x), expected)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMS)
def test_each_layer_is_served_as_it_is(name, caplog):
    """On PyTorch the second batch of a shape is recorded, or a line says why not."""
    model, twin, fresh = (build(name)[0] for _ in range(3))
    batches = [(1.0 + i) * draw(4, length) for i, length in enumerate((6, 6, 6, 3, 3, 3, 6))]
    expected = [twin.predict(x, batch_size=4, verbose=0) for x in batches]
    alone = {i: fresh.predict(batches[i], verbose=0) for i in (3, 1)}
    has_state = not all(np.allclose(alone[i], expected[i]) for i in alone)
    with caplog.at_level(logging.INFO):
        if has_state:  # An engine tries a model at its start, which would change the state.
            executor = KerasModel(model)
            received = [next(iter(executor.run({"inputs": x}).values())) for x in batches]
        else:
            with ServingEngine(model, batch_size=4) as engine:
                received = [engine.predict(x) for x in batches]
    for outputs, reference in zip(received, expected, strict=True):
        assert_same(outputs, reference)
    if keras.backend.backend() == "torch" and (has_state or EXPECTED[name] is not None):
        assert "runs as it is, not recorded" in caplog.text
