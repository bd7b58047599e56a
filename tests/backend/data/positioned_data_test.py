import itertools

import keras
import numpy as np
import pytest

from keras_deepseek.backend.data.batch_source import open_batch_source
from keras_deepseek.backend.data.batch_stream import BatchStream
from keras_deepseek.backend.data.positioned_data import PositionedData
from keras_deepseek.errors import InvalidInputError

X = np.arange(10, dtype="float32")[:, None]
NAMED_SHAPES = {"b": (None, 5), "a": (None, None, 2)}


def open_data(x=X, y=X, batch_size=4):
    source = open_batch_source(
        x,
        y=y,
        batch_size=batch_size,
        sample_weight=None,
        steps_per_epoch=None,
        shuffle=None,
        seed=1,
        class_weight=None,
    )
    data = PositionedData(BatchStream(source, None))
    data.open()
    return data


def fed_to_keras(data):
    """Returns what Keras's loop is given, on whichever backend."""
    backend = keras.backend.backend()
    name = {"jax": "jax_iterator", "torch": "torch_dataloader", "tensorflow": "tf_dataset"}[backend]
    return getattr(data, f"get_{name}")()


def test_each_backend_is_fed_the_same():
    data = open_data()
    data.stream.begin_epoch()
    fed = [keras.ops.convert_to_numpy(x)[:, 0].tolist() for x, _ in fed_to_keras(data)]
    data = open_data()
    data.stream.begin_epoch()
    assert fed == [x[:, 0].tolist() for x, _ in data.get_numpy_iterator()]
    assert sorted(itertools.chain(*fed)) == X[:, 0].tolist()


def test_a_symbolic_batch_is_like_the_first_wherever_the_data_stand():
    data = open_data({"x": X}, X.astype("int32"))
    inputs, targets = data.symbolic_batch()
    assert (inputs["x"].shape, inputs["x"].dtype) == ((4, 1), "float32")
    assert (targets.shape, targets.dtype) == ((4, 1), "int32")

    data.stream.begin_epoch()
    batches = list(data.get_numpy_iterator())
    data.stream.end_epoch()
    assert len(batches) == 3
    resumed = open_data({"x": X}, X.astype("int32"))
    resumed.go_to(data.read_position())
    assert resumed.symbolic_batch()[0]["x"].shape == (4, 1)


def test_a_size_that_differs_between_the_first_two_batches_may_be_any():
    def sentences():
        for length in (3, 5, 4):
            yield np.zeros((2, length)), np.zeros((2, 1)), None

    data = open_data(sentences(), None, None)
    assert data.symbolic_batch()[0].shape == (2, 3)
    assert data.symbolic_batch("all")[0].shape == (2, None)
    assert data.symbolic_batch()[2] is None
    data.stream.begin_epoch()
    shapes = [tuple(x.shape) for x, *_ in fed_to_keras(data)]
    assert shapes == [(2, 3), (2, 5), (2, 4)]


def test_keras_goes_through_them_as_through_any_data():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")

    class EndAfter(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            data.stream.begin_epoch()

        def on_train_batch_end(self, batch, logs=None):
            self.batches = batch + 1
            self.model.stop_training = data.stream.epoch_length is not None

    data = open_data()
    end = EndAfter()
    model.fit(data, verbose=0, callbacks=[end])
    assert end.batches == 3


def test_data_without_a_batch_are_refused():
    with pytest.raises(InvalidInputError, match="hold no batch"):
        open_data(iter_of_nothing(), None, None)


def iter_of_nothing():
    yield from ()


def test_inputs_keep_their_names_in_whichever_order_they_come():
    data = open_data({"second": X, "first": np.tile(X, 3)}, y=None)
    inputs, _, _ = keras.utils.unpack_x_y_sample_weight(data.symbolic_batch())
    assert {name: tensor.shape for name, tensor in inputs.items()} == {
        "first": (4, 3),
        "second": (4, 1),
    }


def test_free_axes_may_differ_from_the_first_batches():
    data = open_data({"a": np.ones((9, 5, 2)), "b": np.ones((9, 5))}, np.ones((9, 5)))
    inputs = [keras.KerasTensor(shape, name=name) for name, shape in NAMED_SHAPES.items()]
    data.allow_other_sizes(inputs)
    x, y = data.symbolic_batch("all")
    assert (x["a"].shape, x["b"].shape, y.shape) == ((4, None, 2), (4, 5), (4, None))
    assert data.symbolic_batch()[0]["a"].shape == (4, 5, 2)


def test_inputs_that_are_not_those_of_the_model_stay_as_they_are():
    data = open_data(np.ones((9, 5)), np.ones((9, 5)))
    data.allow_other_sizes([keras.KerasTensor((None, None)), keras.KerasTensor((None, None))])
    assert data.symbolic_batch("all")[0].shape == (4, 5)
