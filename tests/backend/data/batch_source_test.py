import itertools

import keras
import numpy as np
import pytest

from keras_deepseek.backend.data.batch_source import open_batch_source
from keras_deepseek.backend.keras_private.datasets import DataAdapter
from keras_deepseek.errors import InvalidInputError, NotSupportedError

X = np.arange(10, dtype="float32")[:, None]


def open_source(x=X, seed=1, shuffle=None, class_weight=None, **arguments):
    arguments = {"y": None, "sample_weight": None, "batch_size": None} | arguments
    return open_batch_source(
        x, seed=seed, shuffle=shuffle, class_weight=class_weight, steps_per_epoch=None, **arguments
    )


def rows(source, index=0, first=0):
    """Returns the first column of each batch."""
    batches = source.batches(index, first)
    return [np.asarray(keras.tree.flatten(batch)[0])[:, 0].tolist() for batch in batches]


def test_arrays_are_shuffled_by_the_seed_and_the_pass():
    source = open_source(batch_size=4)
    order = rows(source)
    assert [len(batch) for batch in order] == [4, 4, 2]
    assert sorted(itertools.chain(*order)) == list(range(10))
    assert order != rows(source, index=1)
    assert order == rows(open_source(batch_size=4))
    assert order != rows(open_source(batch_size=4, seed=2))
    assert rows(source, index=3, first=1) == rows(source, index=3)[1:]
    assert (source.num_batches, source.is_length_exact) == (3, True)


def test_arrays_may_be_shuffled_within_their_batches_or_not_at_all():
    within = rows(open_source(batch_size=4, shuffle="batch"))
    assert [sorted(batch) for batch in within] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert within != rows(open_source(batch_size=4, shuffle=False))
    assert rows(open_source(batch_size=4, shuffle=False))[2] == [8, 9]


def test_targets_and_weights_go_with_their_rows():
    y = np.arange(10) % 2
    source = open_source({"x": X}, y=y, batch_size=3, class_weight={0: 1.0, 1: 5.0})
    for x, label, weight in source.batches(0, 0):
        np.testing.assert_array_equal(x["x"][:, 0] % 2, label)
        np.testing.assert_array_equal(weight, 1.0 + 4.0 * label)


class Batches(keras.utils.PyDataset):
    def __init__(self, **workers):
        super().__init__(**workers)
        self.calls = []

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return X[2 * index : 2 * index + 2], X[2 * index : 2 * index + 2]

    def on_epoch_begin(self):
        self.calls.append("begin")

    def on_epoch_end(self):
        self.calls.append("end")


@pytest.mark.parametrize("workers", [{}, {"workers": 2, "max_queue_size": 3}])
def test_the_batches_of_a_py_dataset_are_shuffled_by_the_seed_and_the_pass(workers):
    source = open_source(Batches(**workers))
    order = rows(source)
    assert sorted(order) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert rows(source, index=1) != order
    assert rows(source, index=1, first=2) == rows(source, index=1)[2:]
    assert rows(open_source(Batches(**workers), shuffle=False))[0] == [0, 1]


def test_a_py_dataset_is_told_again_of_the_passes_before():
    dataset = Batches()
    source = open_source(dataset)
    source.go_to_pass(2, None)
    assert dataset.calls == ["begin", "end"] * 2
    rows(source, index=2)
    source.end_pass()
    assert dataset.calls == ["begin", "end"] * 3


def test_a_py_dataset_may_keep_its_own_state():
    class Keeping(Batches):
        state = 0

        def get_state(self):
            return self.state

        def set_state(self, state):
            self.state = state

    source = open_source(Keeping())
    source.go_to_pass(2, 7)
    assert source.read_state() == 7


def test_a_py_dataset_without_end_is_gone_through_from_any_batch():
    class Endless(keras.utils.PyDataset):
        num_batches = None

        def __getitem__(self, index):
            return np.full((1, 1), index)

    source = open_source(Endless(), shuffle=False)
    first = itertools.islice(source.batches(0, 4), 2)
    assert [int(keras.tree.flatten(batch)[0][0, 0]) for batch in first] == [4, 5]


def test_a_generator_is_gone_through_once():
    source = open_source((X[i : i + 1],) for i in range(4))
    assert rows(source, first=1) == [[1], [2], [3]]
    with pytest.raises(InvalidInputError, match="has ended and can't be repeated"):
        rows(source, index=1)


def test_a_generator_holds_all_that_fit_takes():
    with pytest.raises(InvalidInputError, match="Received `y` together with a generator"):
        open_source(((X,) for _ in range(2)), y=X)
    with pytest.raises(InvalidInputError, match="received a ndarray"):
        rows(open_source(X for _ in range(2)))


def test_data_of_another_kind_are_refused():
    class Own(DataAdapter):
        pass

    with pytest.raises(NotSupportedError, match=r"know its position in a Own\. Give arrays"):
        open_source(Own())


def test_tensorflow_s_data_are_shuffled_as_in_the_pass_that_they_go_to():
    tf = pytest.importorskip("tensorflow")

    def fresh():
        dataset = tf.data.Dataset.from_tensor_slices(X).shuffle(10, seed=5).batch(4)
        return open_source(dataset)

    source = fresh()
    passes = [rows(source, index) for index in range(3)]
    assert passes[0] != passes[1]
    again = fresh()
    again.go_to_pass(2, None)
    assert rows(again, index=2, first=1) == passes[2][1:]
    assert (again.num_batches, again.is_length_exact) == (3, False)
    assert again.specs.shape == (None, 1)


@pytest.mark.parametrize("has_generator", [False, True])
def test_pytorch_s_loader_is_shuffled_as_in_the_pass_that_it_goes_to(has_generator):
    torch = pytest.importorskip("torch")

    def fresh():
        generator = torch.Generator().manual_seed(3) if has_generator else None
        data = torch.utils.data.TensorDataset(torch.from_numpy(X))
        return open_source(torch.utils.data.DataLoader(data, 4, shuffle=True, generator=generator))

    torch.manual_seed(0)
    source = fresh()
    first = rows(source)
    state = source.read_state()
    second = rows(source, index=1)
    assert first != second
    again = fresh()
    again.go_to_pass(1, state)
    assert rows(again, index=1, first=1) == second[1:]


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Elsewhere they become arrays.")
def test_tensors_of_pytorch_stay_what_they_are():
    import torch

    x = torch.arange(6.0)[:, None]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x), 4)
    whole = torch.utils.data.DataLoader([{"a": x}], None)
    for data in (x, loader, whole, iter([(x,)][i] for i in range(1))):
        batch = next(open_source(data, shuffle=False).batches(0, 0))
        assert all(
            isinstance(leaf, torch.Tensor) for leaf in keras.tree.flatten(batch) if leaf is not None
        )
    assert type(next(open_source(loader).batches(0, 0))) is tuple
    assert next(open_source(whole).batches(0, 0))["a"] is x
