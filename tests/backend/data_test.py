import keras
import numpy as np
import pytest

from keras_deepseek.backend import current

SPECS = (keras.KerasTensor((2, 3)), {"label": keras.KerasTensor((2,), "int32")}, None)


def batches():
    for index in range(3):
        rows = 2 if index < 2 else 1
        x = np.full((rows, 3), index, "float32")
        yield x, {"label": np.full(rows, index, "int32")}, None


def test_keras_is_fed_batch_by_batch_as_often_as_it_begins():
    fed = [current().feed_batches(batches, SPECS) for _ in range(2)]
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

    iterator = iter(current().feed_batches(counted, SPECS))
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
    (fed,) = current().feed_batches(lambda: iter([batch]), None)
    for tensor, leaf in zip(fed[:-1], batch[:-1], strict=True):
        expected = keras.ops.convert_to_tensor(leaf)
        assert (tensor.dtype, tensor.tolist()) == (expected.dtype, expected.tolist())
    assert fed[-1] is None


def test_batches_of_pytorch_s_loader_are_handed_on_by_keras_itself():
    is_torch = keras.backend.backend() == "torch"
    assert current().prefers_own_feed(np.ones(2)) == is_torch
    if is_torch:
        import torch

        assert not current().prefers_own_feed(torch.utils.data.DataLoader([1]))
