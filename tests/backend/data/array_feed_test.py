"""Arrays are trained on, evaluated and predicted as in Keras's own loops, to the bit."""

import sys

import keras
import numpy as np
import pytest

from keras_deepseek.backend.data import array_feed
from keras_deepseek.backend.data.array_feed import ArrayFeed
from keras_deepseek.training import Trainer

NUM_ROWS = 23  # With batches of 5, the last one has 3.
BACKEND = keras.backend.backend()
NOT_ON_TORCH = pytest.mark.skipif(BACKEND == "torch", reason="Trainer has its own order there.")


@pytest.fixture
def feeds(monkeypatch):
    """The feeds that were made."""
    created = []
    create = ArrayFeed.__init__

    def init(self, *arguments, **options):
        create(self, *arguments, **options)
        created.append(self)

    monkeypatch.setattr(ArrayFeed, "__init__", init)
    return created


class Params(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.calls = []

    def on_predict_begin(self, logs=None):
        self.calls.append(dict(self.params))

    def on_test_begin(self, logs=None):
        self.calls.append(dict(self.params))

    def on_train_begin(self, logs=None):
        self.calls.append(dict(self.params))

    def on_predict_batch_end(self, batch, logs=None):
        self.calls.append((batch, keras.ops.convert_to_numpy(logs["outputs"]).tolist()))

    def on_test_batch_end(self, batch, logs=None):
        self.calls.append((batch, {name: float(value) for name, value in logs.items()}))

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append((batch, {name: float(value) for name, value in logs.items()}))


def random_rows(*shape, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    if dtype.startswith("int"):
        return rng.integers(0, 4, (NUM_ROWS, *shape)).astype(dtype)
    return rng.normal(size=(NUM_ROWS, *shape)).astype(dtype)


def one_input():
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(2)(inputs)), random_rows(4)


def integers():
    inputs = keras.Input((3,), dtype="int32")
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.Embedding(4, 2)(inputs)))
    return keras.Model(inputs, outputs), random_rows(3, dtype="int64")


def transposed():
    model, x = one_input()
    return model, np.asfortranarray(x.astype("float32"))


def read_only():
    model, x = one_input()
    x = x.astype("float32")
    x.flags.writeable = False
    return model, x


def tensors():
    model, x = one_input()
    return model, keras.ops.convert_to_tensor(x)


def named_inputs_and_outputs():
    first, second = keras.Input((4,), name="first"), keras.Input((2,), name="second")
    joined = keras.layers.Concatenate()([first, second])
    outputs = {name: keras.layers.Dense(2, name=name)(joined) for name in ("left", "right")}
    return keras.Model({"first": first, "second": second}, outputs), {
        "second": random_rows(2, dtype="float32"),
        "first": random_rows(4, seed=1),
    }


def listed_inputs():
    inputs = [keras.Input((4,)), keras.Input((4,))]
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Add()(inputs))), [
        random_rows(4),
        random_rows(4, seed=1),
    ]


FED = [one_input, integers, transposed, read_only, tensors, named_inputs_and_outputs, listed_inputs]


def equal(outputs, expected):
    return keras.tree.map_structure(np.array_equal, outputs, expected)


def read_torch_state():
    return sys.modules["torch"].get_rng_state().tolist() if BACKEND == "torch" else None


def draw():
    """Returns a number of the generator that Keras takes the order of rows from."""
    if BACKEND == "tensorflow":
        return float(sys.modules["tensorflow"].random.uniform(()))
    return np.random.uniform()  # noqa: NPY002


@pytest.mark.parametrize("make", FED)
@pytest.mark.parametrize("options", [{"batch_size": 5}, {"steps": 4}, {}])
def test_outputs_are_those_of_keras_s_predict(make, options, feeds):
    model, x = make()
    results = []
    for predict in (model.predict, Trainer(model, optimizer="sgd", loss="mse").predict):
        keras.utils.set_random_seed(0)
        results.append((predict(x, verbose=0, **options), read_torch_state()))
    (expected, expected_state), (outputs, state) = results
    assert all(keras.tree.flatten(equal(outputs, expected)))
    assert state == expected_state
    assert len(feeds) == 1


@pytest.mark.parametrize("is_weighted", [True, False])
@pytest.mark.parametrize("options", [{"batch_size": 5}, {"steps": 2}])
def test_losses_and_metrics_are_those_of_keras_s_evaluate(options, is_weighted, feeds):
    model, x = named_inputs_and_outputs()
    y = {"left": random_rows(2, seed=2), "right": random_rows(2, seed=3)}
    if is_weighted:
        options["sample_weight"] = np.abs(random_rows())
    trainer = Trainer(model, optimizer="sgd", loss="mse", metrics={"left": ["mae"]})
    model.evaluate(x, y, verbose=0, **options)  # It builds the metrics from a further pass.
    results = []
    for evaluate in (model.evaluate, trainer.evaluate):
        keras.utils.set_random_seed(0)
        results.append((evaluate(x, y, verbose=0, **options), read_torch_state()))
    assert results[0] == results[1]
    assert len(feeds) == 1


def test_callbacks_get_the_params_and_logs_of_keras(feeds):
    model, x = one_input()
    y = random_rows(2)
    trainer = Trainer(model, optimizer="sgd", loss="mse")
    calls = []
    for methods in (model, trainer):
        calls.append(params := Params())
        methods.predict(x, batch_size=5, verbose=0, callbacks=[params])
        methods.evaluate(x, y, batch_size=5, verbose=0, callbacks=[params])
    expected, params = calls
    assert len(params.calls) == 12
    assert params.calls == expected.calls
    assert feeds


@NOT_ON_TORCH
@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # As by Keras: 3 of 5 batches.
@pytest.mark.parametrize("shuffle", [True, False, "batch"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"validation_split": 0.3, "validation_batch_size": None},
        {"validation_data": (random_rows(1), random_rows(1)), "validation_steps": 2},
        {"steps_per_epoch": 3},
        {"class_weight": {0: 2.0, 1: 3.0}},
        {"sample_weight": np.abs(random_rows())},
    ],
    ids=",".join,
)
def test_the_order_of_rows_is_that_of_keras_s_fit(shuffle, options, feeds):
    """The weights stay the same, so that the running mean of the loss shows the rows."""
    x, y = random_rows(1), random_rows(dtype="int32") % 2
    calls, draws = [], []
    for is_keras in (True, False):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "relu")])
        model.layers[0].set_weights([np.ones((1, 1)), np.ones(1)])
        optimizer = keras.optimizers.SGD(0.0)
        if is_keras:
            model.compile(optimizer, "mse")
        methods = model if is_keras else Trainer(model, optimizer=optimizer, loss="mse")
        keras.utils.set_random_seed(4)
        calls.append(params := Params())
        arguments = {"batch_size": 5, "epochs": 3, "shuffle": shuffle, "verbose": 0, **options}
        history = methods.fit(x, y, callbacks=[params], **arguments)
        params.calls.append(history.history)
        for call in params.calls:
            if isinstance(call, dict):
                call.pop("verbose", None)
        draws.append(draw())
    assert calls[0].calls == calls[1].calls
    assert draws[0] == draws[1]
    assert bool(feeds) == (shuffle != "batch") or "validation" in str(options)


def test_a_step_that_writes_to_its_batch_leaves_the_user_s_array_alone(feeds):
    class Writing(keras.layers.Layer):
        def call(self, inputs):
            if BACKEND == "torch":
                return inputs.add_(1.0)
            return inputs + 1.0

    model = keras.Sequential([keras.Input((4,)), Writing()])
    x = random_rows(4, dtype="float32")
    before = x.copy()
    outputs = Trainer(model, optimizer="sgd", loss="mse").predict(x, batch_size=5, verbose=0)
    np.testing.assert_array_equal(outputs, before + 1)
    np.testing.assert_array_equal(x, before)
    assert feeds


def test_other_data_go_keras_s_way(feeds):
    model, x = one_input()
    trainer = Trainer(model, optimizer="sgd", loss="mse")
    pandas = pytest.importorskip("pandas")
    expected = model.predict(x, batch_size=5, verbose=0)
    frame = pandas.DataFrame(x)
    np.testing.assert_array_equal(trainer.predict(frame, batch_size=5, verbose=0), expected)
    batches = ((x[start : start + 5],) for start in range(0, NUM_ROWS, 5))
    np.testing.assert_array_equal(trainer.predict(batches, verbose=0, steps=5), expected)
    assert all(feed.arrays is None for feed in feeds)


def test_a_method_of_the_user_gets_the_user_s_arrays():
    class Mine(keras.Model):
        received = ()

        def call(self, inputs):
            return inputs

        def predict(self, x, **options):
            self.received += (type(x),)
            return super().predict(x, **options)

        def evaluate(self, x=None, **options):
            self.received += (type(x),)
            return super().evaluate(x, **options)

    model = Mine()
    trainer = Trainer(model, optimizer="sgd", loss="mse")
    x = random_rows(2)
    trainer.predict(x, verbose=0)
    trainer.evaluate(x, x, verbose=0)
    assert model.received == (np.ndarray, np.ndarray)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="StringLookup in a model needs TensorFlow.")
def test_texts_are_predicted():
    inputs = keras.Input((), dtype="string")
    model = keras.Model(inputs, keras.layers.StringLookup(vocabulary=["a", "b"])(inputs))
    x = np.array(["b", "a", "c"], dtype=object)
    outputs = Trainer(model, optimizer="sgd", loss="mse").predict(x, batch_size=2, verbose=0)
    assert outputs.tolist() == [2, 1, 0]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Only there Keras copies the arrays.")
def test_arrays_that_change_during_an_epoch_are_trained_on_as_they_were():
    x, y = random_rows(1), random_rows(1)

    class Changing(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            x[:] = 0.0

    losses = []
    for is_keras in (True, False):
        x[:] = random_rows(1)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "relu")])
        model.layers[0].set_weights([np.ones((1, 1)), np.ones(1)])
        model.compile(keras.optimizers.SGD(0.0), "mse")
        methods = model
        if not is_keras:
            methods = Trainer(model, optimizer=keras.optimizers.SGD(0.0), loss="mse")
        history = methods.fit(x, y, batch_size=5, epochs=2, verbose=0, callbacks=[Changing()])
        losses.append(history.history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    assert np.ptp(losses[1]) < 1e-6 * losses[1][0]


def test_the_function_that_feeds_keeps_the_arguments_of_others():
    model, x = one_input()
    arguments = {"x": iter([x]), "verbose": 0}
    assert array_feed.with_fed_arrays(model, "predict", arguments) is arguments
