import keras
import numpy as np
import pytest

from keras_deepseek.backend.processes import OneProcess
from keras_deepseek.training.evaluate_together import evaluate_together

RNG = np.random.default_rng(0)


class Ranks:
    """Processes in turn: the last gathers what the others have given."""

    def __init__(self, rank, world_size, given):
        self.rank, self.world_size, self.given = rank, world_size, given
        self.replicas = self

    def gather(self, array):
        self.given.append(array)
        return list(self.given)


def build(model_class=keras.Sequential):
    keras.utils.set_random_seed(1)
    model = model_class([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    metrics = ["accuracy", keras.metrics.AUC(name="area"), keras.metrics.F1Score(name="f1")]
    model.compile("sgd", "categorical_crossentropy", metrics=metrics)
    return model


def make(num_rows):
    y = np.eye(2)[RNG.integers(0, 2, num_rows)]
    return RNG.normal(size=(num_rows, 3)), y, RNG.uniform(0.5, 2, num_rows)


@pytest.mark.parametrize(("num_rows", "world_size"), [(1, 2), (9, 2), (33, 4), (12, 3)])
def test_batches_are_shared_out_and_all_hear_of_all(num_rows, world_size):
    x, y, weights = make(num_rows)
    model, given = build(), []
    options = {"sample_weight": weights, "verbose": 0, "return_dict": True}
    for rank in range(world_size):
        found = evaluate_together(model, x, y, 4, Ranks(rank, world_size, given), **options)
    expected = build().evaluate(x, y, 4, **options)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_a_list_comes_as_from_keras():
    x, y, _ = make(9)
    found = evaluate_together(build(), x, y, 16, Ranks(0, 2, []), verbose=0)
    expected = build().evaluate(x, y, 16, verbose=0)
    np.testing.assert_allclose(found[:3], expected[:3], rtol=1e-5)
    np.testing.assert_allclose(found[3], expected[3], rtol=1e-5)


def test_what_can_not_be_shared_out_is_gone_through_by_each():
    class OwnStep(keras.Sequential):
        def test_step(self, *arguments):
            return super().test_step(*arguments)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return x[3 * index : 3 * index + 3], y[3 * index : 3 * index + 3]

    x, y, _ = make(9)
    expected = build().evaluate(x, y, 3, verbose=0)[0]
    given = []
    ranks = Ranks(1, 2, given)
    callback = keras.callbacks.Callback()
    assert evaluate_together(build(), Batches(), None, None, ranks)[0] == pytest.approx(expected)
    for model, options in ((build(OwnStep), {}), (build(), {"callbacks": [callback]})):
        found = evaluate_together(model, x, y, 3, ranks, **options)
        assert found[0] == pytest.approx(expected)
    assert not given
    alone = evaluate_together(build(), x, y, 3, OneProcess(), verbose=0)
    assert alone[0] == pytest.approx(expected)
