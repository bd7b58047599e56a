import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer
from keras_deepseek.training.tuning.batch_size_search import choose_size

X = np.ones((48, 4), "float32")


def measure_like(seconds_of, largest=10**9):
    tried = []

    def measure(size):
        tried.append(size)
        return None if size > largest else seconds_of(size)

    return measure, tried


def test_sizes_are_doubled_while_the_throughput_grows():
    measure, tried = measure_like(lambda size: max(1.0, size / 64))
    search = choose_size(measure, 8, None)
    assert search.batch_sizes == [8, 16, 32, 64, 128]
    assert tried == [*search.batch_sizes, 128]
    assert search.suggestion == 64
    assert search.samples_per_second == [8, 16, 32, 64, 64]
    assert search.out_of_memory == []


def test_one_slow_timing_does_not_end_the_search():
    measure, tried = measure_like(lambda size: 2.5 if tried.count(16) == 1 else 1.0)
    search = choose_size(measure, 8, 64)
    assert tried == [8, 16, 16, 32, 64]
    assert search.seconds_per_step == [1.0, 1.0, 1.0, 1.0]
    assert search.suggestion == 64


def test_the_largest_size_that_fits_is_found():
    measure, tried = measure_like(lambda size: 1.0, largest=100)
    search = choose_size(measure, 8, None)
    assert tried == [8, 16, 32, 64, 128, 96, 112, 104]
    assert search.batch_sizes == [8, 16, 32, 64, 96]
    assert search.out_of_memory == [104, 112, 128]
    assert search.suggestion == 96


@pytest.mark.parametrize(("largest", "suggestion"), [(3, 3), (1, 1), (0, None)])
def test_a_start_that_does_not_fit_is_halved(largest, suggestion):
    measure, _ = measure_like(lambda size: 1.0, largest)
    assert choose_size(measure, 16, None).suggestion == suggestion


def test_sizes_do_not_exceed_max_batch_size():
    measure, tried = measure_like(lambda size: 1.0)
    assert choose_size(measure, 8, 20).suggestion == 20
    assert tried == [8, 16, 20]


class Greedy(keras.layers.Layer):
    """Asks for four terabytes where a batch has more than 8 rows."""

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def call(self, inputs):
        num_rows = ops.shape(inputs)[0]
        if isinstance(num_rows, int):
            length = 1 if num_rows < 9 else 2**20
        else:
            length = ops.where(num_rows < 9, 1, 2**20)
        number = ops.stop_gradient(inputs[0, 0])
        column = ops.cumsum(ops.broadcast_to(number, (length, 1)), axis=0)
        row = ops.cumsum(ops.broadcast_to(number, (1, length)), axis=1)
        # Sorted, so that no compiler gets around having all numbers at once.
        return inputs + 1e-9 * ops.max(ops.sort(ops.sin(column * row)))


@pytest.mark.torch_alone
def test_a_step_that_runs_out_of_memory_ends_the_search_alone():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), Greedy()])
    trainer = Trainer(model, optimizer=keras.optimizers.Adam(), loss="mse", seed=1)
    old_weights = model.get_weights()
    search = trainer.find_batch_size(X, X, min_batch_size=8, max_batch_size=9)
    assert (search.batch_sizes, search.out_of_memory, search.suggestion) == ([8], [9], 8)
    for received, expected in zip(model.get_weights(), old_weights, strict=True):
        np.testing.assert_array_equal(received, expected)
    assert int(model.optimizer.iterations) == 0
    assert np.isfinite(trainer.fit(X, X, batch_size=8, verbose=0).history["loss"][0])


class Rows(keras.utils.PyDataset):
    def __init__(self, batch_size):
        super().__init__()
        self._batch_size = batch_size

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[: self._batch_size], X[: self._batch_size, :1]


def make_trainer():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    return Trainer(model, optimizer="sgd", loss="mse")


@pytest.mark.parametrize("data", [Rows, lambda size: (X[:size], X[:size, :1])])
def test_data_are_made_for_a_size(data):
    search = make_trainer().find_batch_size(data, min_batch_size=2, max_batch_size=4)
    assert search.batch_sizes == [2, 4]
    assert all(seconds > 0 for seconds in search.seconds_per_step)


def test_a_function_that_returns_too_few_rows_is_refused():
    with pytest.raises(InvalidInputError, match="for a batch of 4 rows and returned 2"):
        make_trainer().find_batch_size(
            lambda size: (X[:2], X[:2, :1]), min_batch_size=2, max_batch_size=4
        )


def test_data_of_one_size_are_refused():
    for data in (((X, X) for _ in range(9)), Rows(3)):
        with pytest.raises(InvalidInputError, match="a function from a batch size to data"):
            make_trainer().find_batch_size(data)


def test_data_that_can_not_be_timed_and_wrong_numbers_are_refused():
    trainer = make_trainer()
    with pytest.raises(InvalidInputError, match="hold fewer than two batches"):
        trainer.find_batch_size(
            lambda size: ((X[:size], X[:size, :1]) for _ in range(1)), max_batch_size=8
        )
    with pytest.raises(
        InvalidInputError, match="`max_batch_size` must be at least `min_batch_size`, 8"
    ):
        trainer.find_batch_size(X, X[:, :1], max_batch_size=4)
    with pytest.raises(InvalidInputError, match="`min_batch_size`"):
        trainer.find_batch_size(X, X[:, :1], min_batch_size=0)


def test_another_error_is_raised_as_it_is():
    with pytest.raises(Exception, match=r"expected axis -1|expected shape|incompatible"):
        make_trainer().find_batch_size(X[:, :3], X[:, :1])
