"""A training by the stream is the one that Keras makes of the same arguments."""

import threading

import keras
import numpy as np
import pytest

from keras_deepseek.backend.data.positioned_data import PositionedData
from keras_deepseek.backend.keras_private.datasets import DataAdapter
from keras_deepseek.backend.processes.processes import OneProcess
from keras_deepseek.errors import NotSupportedError
from keras_deepseek.training import Trainer
from keras_deepseek.training.checkpoints.streamed_training import feed

X = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


@pytest.fixture(scope="module")
def model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def fit(model, *, needs_stream=True, x=X, y=Y, callbacks=(), **options):
    arguments = {"x": x, "y": y, "callbacks": list(callbacks), "epochs": 1, "verbose": 0}
    with feed(model, arguments | options, OneProcess(), needs_stream=needs_stream) as fit_arguments:
        return model.fit(**fit_arguments)


class Batches(keras.utils.PyDataset):
    def __init__(self, **workers):
        super().__init__(**workers)
        self.ended = 0

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]

    def on_epoch_end(self):
        self.ended += 1


def endless():
    index = 0
    while True:
        yield X[index : index + 4], Y[index : index + 4]
        index = (index + 4) % 20


def ending():
    for index in range(3):
        yield X[index : index + 4], Y[index : index + 4]


class Seeing(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.events = []

    def on_train_begin(self, logs=None):
        self.events.append({name: self.params[name] for name in ("epochs", "steps", "verbose")})

    def on_epoch_begin(self, epoch, logs=None):
        self.events.append(("begin", epoch))

    def on_train_batch_begin(self, batch, logs=None):
        self.events.append(batch)

    def on_train_batch_end(self, batch, logs=None):
        self.events.append((batch, sorted(logs)))

    def on_test_end(self, logs=None):
        self.events.append("test")

    def on_epoch_end(self, epoch, logs=None):
        self.events.append((epoch, sorted(logs)))


@pytest.mark.parametrize(
    "options",
    [
        lambda: {"batch_size": 8, "validation_split": 0.25, "class_weight": {0: 1.0, 1: 3.0}},
        lambda: {
            "sample_weight": np.arange(20.0),
            "validation_data": (X, Y),
            "validation_freq": 2,
            "initial_epoch": 1,
        },
        lambda: {"x": Batches(), "y": None, "class_weight": {0: 1.0, 1: 3.0}},
        lambda: {"x": Batches(workers=2), "y": None, "steps_per_epoch": 5},
        lambda: {"x": endless(), "y": None, "steps_per_epoch": 3, "validation_data": Batches()},
    ],
    ids=["arrays", "weights", "PyDataset", "workers", "generator"],
)
def test_callbacks_and_history_are_those_of_keras(model, options):
    weights = model.get_weights()
    runs = []
    for by_stream in (False, True):
        model.set_weights(weights)
        seeing = Seeing()
        fit_arguments = {"epochs": 3, "shuffle": False, "callbacks": [seeing], **options()}
        if by_stream:
            history = fit(model, **fit_arguments)
        else:
            history = model.fit(**{"x": X, "y": Y, "verbose": 0} | fit_arguments)
        runs.append((seeing.events, history.history))
    assert runs[1][0] == runs[0][0]
    assert runs[1][1].keys() == runs[0][1].keys()
    for name, values in runs[0][1].items():
        assert runs[1][1][name] == pytest.approx(values, rel=1e-5)


def test_data_are_streamed_if_that_is_faster(model, monkeypatch):
    trained = []
    monkeypatch.setattr(keras.Model, "fit", lambda _model, x, **_options: trained.append(x))
    is_torch = keras.backend.backend() == "torch"
    for x, y, is_streamed in (
        (X, Y, is_torch),
        (ending(), None, True),
        (Batches(), None, is_torch),
    ):
        Trainer(model).fit(x, y, epochs=0, verbose=0)
        assert isinstance(trained.pop(), PositionedData) == is_streamed


def test_data_that_cannot_be_streamed_are_given_to_keras_or_refused(model):
    class Own(DataAdapter):
        pass

    arguments = {"x": Own(), "y": None, "callbacks": [], "epochs": 1, "verbose": 0}
    with feed(model, arguments, OneProcess(), needs_stream=False) as fit_arguments:
        assert fit_arguments is arguments
    with pytest.raises(NotSupportedError, match="train by fit, without a checkpoint_dir"):
        feed(model, arguments, OneProcess(), needs_stream=True)


def test_each_training_is_shuffled_anew_by_the_seed_of_the_framework(model):
    weights = model.get_weights()
    orders = []
    for seed in (1, None, 1):
        if seed:
            keras.utils.set_random_seed(seed)
        model.set_weights(weights)
        orders.append(fit(model, batch_size=2).history["loss"])
    assert orders[0] == orders[2] != orders[1]


def test_a_generator_that_is_trained_on_again_has_lost_no_batch(model):
    drawn = []
    data = (drawn.append(index) or (X[:4], Y[:4]) for index in range(9))
    for number in (1, 2, 3):
        fit(model, x=data, y=None, steps_per_epoch=3)
        assert len(drawn) == 3 * number


@pytest.mark.parametrize("needs_stream", [False, True])
def test_the_training_ends_with_its_generator(model, needs_stream):
    with pytest.warns(UserWarning, match="ended in epoch 1 of 3, so that the training stops"):
        history = fit(model, x=ending(), y=None, epochs=3, needs_stream=needs_stream)
    assert len(history.epoch) == 1
    with pytest.warns(UserWarning, match="Epoch 2 ended after 1 batches because the data ended"):
        history = fit(model, x=ending(), y=None, epochs=2, steps_per_epoch=2)
    assert len(history.epoch) == 2
    with pytest.warns(UserWarning, match=r"Epoch \d ended after 3 batches"):
        assert len(fit(model, batch_size=8, epochs=2, steps_per_epoch=4).epoch) == 2


@pytest.mark.parametrize("stop", ["on_train_batch_end", "on_test_end", "on_epoch_end"])
@pytest.mark.parametrize("batch_size", [4, 20])
def test_a_callback_may_stop_it_anywhere(model, stop, batch_size):
    def end(*arguments, **logs):
        model.stop_training = True

    callback = keras.callbacks.Callback()
    setattr(callback, stop, end)
    seeing = Seeing()
    options = {"batch_size": batch_size, "epochs": 3, "validation_data": (X, Y)}
    assert len(fit(model, callbacks=[callback, seeing], **options).epoch) == 1
    steps = 1 if batch_size == 20 or stop == "on_train_batch_end" else 5
    assert sum(type(event) is int for event in seeing.events) == steps


@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
def test_workers_of_the_data_end_with_the_training(model, error):
    def fail(batch, logs=None):
        raise error

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=fail)
    old_threads = set(threading.enumerate())
    with pytest.raises(error):
        fit(model, x=Batches(workers=2), y=None, callbacks=[callback])
    new_threads = set(threading.enumerate()) - old_threads
    # TensorFlow's own threads stay.
    assert not [thread for thread in new_threads if not thread.name.startswith("Dummy")]


def test_errors_of_the_data_are_raised(model):
    def data():
        yield X[:4], Y[:4]
        raise ArithmeticError("no second batch")

    with pytest.raises(ArithmeticError, match="no second batch"):
        fit(model, x=data(), y=None)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras has no sparse tensors there.")
def test_sparse_matrices_of_scipy_are_batches():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    weights, weights_by_format = None, []
    for make in (scipy_sparse.csr_matrix, np.array):
        model = keras.Sequential(
            [keras.Input((3,), sparse=make is not np.array), keras.layers.Dense(1)]
        )
        model.compile("sgd", "mse")
        weights = weights or model.get_weights()
        model.set_weights(weights)
        data = ((make(X[at : at + 4]), Y[at : at + 4, None]) for at in (0, 4, 8))
        fit(model, x=data, y=None)
        weights_by_format.append(model.get_weights())
    for sparse_weight, dense_weight in zip(*weights_by_format, strict=True):
        np.testing.assert_allclose(sparse_weight, dense_weight, rtol=1e-5)


def test_batches_may_have_other_lengths_than_the_first_two():
    model = keras.Sequential(
        [keras.Input((None, 3)), keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    lengths = (2, 2, 5, 3)
    data = ((np.ones((4, length, 3)), np.ones((4, 1))) for length in lengths)
    seeing = Seeing()
    fit(model, x=data, y=None, needs_stream=False, callbacks=[seeing])
    assert sum(type(event) is int for event in seeing.events) == len(lengths)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="It has one structure.")
def test_some_batches_of_a_generator_may_have_weights(model):
    data = ((X[:4], Y[:4], np.ones(4)) if index % 2 else (X[:4], Y[:4]) for index in range(4))
    seeing = Seeing()
    fit(model, x=data, y=None, needs_stream=False, callbacks=[seeing])
    assert sum(type(event) is int for event in seeing.events) == 4


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="It alone has strings.")
@pytest.mark.parametrize("is_generator", [False, True])
def test_strings_are_data(is_generator):
    import tensorflow as tf

    texts = tf.constant([["a b"], ["b"], ["a"], ["c a"]])
    vectors = keras.layers.TextVectorization(max_tokens=8, output_sequence_length=3)
    vectors.adapt(texts)
    model = keras.Sequential(
        [
            keras.Input((1,), dtype="string"),
            vectors,
            keras.layers.Embedding(8, 2),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse")
    x, y = ((batch for batch in [(texts, Y[:4])] * 2), None) if is_generator else (texts, Y[:4])
    assert np.isfinite(fit(model, x=x, y=y).history["loss"][0])


class Losses(keras.callbacks.Callback):
    async_safe = True

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(logs["loss"])


def test_callbacks_get_each_step_before_an_error_of_the_data(model):
    def failing():
        for _ in range(9):
            yield X[:4], Y[:4]
        raise ValueError("the file is gone")

    losses = Losses()
    with pytest.raises(ValueError, match="the file is gone"):
        fit(model, x=failing(), y=None, steps_per_epoch=20, callbacks=[losses])
    assert len(losses.values) == 9
    assert np.isfinite(losses.values).all()
