import keras
import numpy as np
import pytest

from keras_deepseek.backend.processes.processes import OneProcess
from keras_deepseek.training.cluster.evaluate_together import predict_together

RNG = np.random.default_rng(0)


class Ranks:
    """Two processes in turn: what the second gathers is what the first has given."""

    world_size = 2
    is_one_program = False

    def __init__(self, rank, gathered):
        self.rank = rank
        self.gathered = gathered

    def gather(self, array):
        self.gathered.append(array)
        return [self.gathered[0], array] if self.rank else [array]


def build():
    first, second = keras.Input((3,), name="first"), keras.Input((2,), name="second")
    joined = keras.layers.Concatenate()([first, second])
    return keras.Model({"first": first, "second": second}, keras.layers.Dense(4)(joined))


@pytest.mark.parametrize("num_rows", [1, 2, 7])
def test_rows_are_shared_out_and_come_back_in_order(num_rows):
    model, gathered = build(), []
    x = {"first": RNG.normal(size=(num_rows, 3)), "second": RNG.normal(size=(num_rows, 2))}
    parts = [
        predict_together(model, x, Ranks(rank, gathered), batch_size=4, verbose=0)
        for rank in range(2)
    ]
    assert [len(part) for part in gathered] == [-(-num_rows // 2), num_rows // 2]
    np.testing.assert_allclose(parts[1], model.predict(x, verbose=0), rtol=1e-5)


def test_data_in_batches_are_gone_through_by_each():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return ({"first": np.ones((3, 3)), "second": np.ones((3, 2))},)

    outputs = predict_together(build(), Batches(), Ranks(0, []), verbose=0)
    assert outputs.shape == (6, 4)


def test_one_process_predicts_alone():
    x = {"first": np.ones((3, 3)), "second": np.ones((3, 2))}
    assert predict_together(build(), x, OneProcess(), verbose=0).shape == (3, 4)
