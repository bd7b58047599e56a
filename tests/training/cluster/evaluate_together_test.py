import keras
import numpy as np
import pytest

from keras_deepseek.backend.processes.processes import OneProcess
from keras_deepseek.training.cluster.evaluate_together import evaluate_together, validating_together

RNG = np.random.default_rng(0)


class Ranks:
    """Processes in turn: the last gathers what the others have given."""

    is_one_program = False

    def __init__(self, rank, world_size, gathered):
        self.rank, self.world_size, self.gathered = rank, world_size, gathered

    def gather(self, array):
        self.gathered.append(array)
        return list(self.gathered)


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
    model, gathered = build(), []
    options = {"sample_weight": weights, "verbose": 0, "return_dict": True}
    for rank in range(world_size):
        results = evaluate_together(model, x, y, 4, Ranks(rank, world_size, gathered), **options)
    expected = build().evaluate(x, y, 4, **options)
    assert set(results) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(results[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.torch_alone
def test_a_list_comes_as_from_keras():
    x, y, _ = make(9)
    results = evaluate_together(build(), x, y, 16, Ranks(0, 2, []), verbose=0)
    expected = build().evaluate(x, y, 16, verbose=0)
    np.testing.assert_allclose(results[:3], expected[:3], rtol=1e-5)
    np.testing.assert_allclose(results[3], expected[3], rtol=1e-5)


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
    gathered = []
    ranks = Ranks(1, 2, gathered)
    callback = keras.callbacks.Callback()
    assert evaluate_together(build(), Batches(), None, None, ranks)[0] == pytest.approx(expected)
    for model, options in ((build(OwnStep), {}), (build(), {"callbacks": [callback]})):
        results = evaluate_together(model, x, y, 3, ranks, **options)
        assert results[0] == pytest.approx(expected)
    assert not gathered
    alone = evaluate_together(build(), x, y, 3, OneProcess(), verbose=0)
    assert alone[0] == pytest.approx(expected)


class Watcher(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.ends = []

    def on_test_end(self, logs=None):
        self.ends.append(logs)


class BatchWatcher(Watcher):
    def on_test_batch_end(self, batch, logs=None):
        self.ends.append(batch)


@pytest.mark.torch_alone
@pytest.mark.parametrize("watcher", [Watcher, BatchWatcher])
def test_the_validation_of_fit_is_shared_out_unless_its_batches_are_watched(watcher):
    x, y, weights = make(9)
    validation = {"validation_data": (x, y, weights), "validation_batch_size": 4}
    options = {"batch_size": 3, "epochs": 1, "shuffle": False, "verbose": 0, **validation}
    expected = build().fit(x, y, **options).history
    watches = np.array(watcher is BatchWatcher)
    gathered, histories = [watches], []
    for rank in range(2):
        # What is gathered is whether batches are watched, and then what metrics add up to.
        ranks, sums = Ranks(rank, 2, gathered), gathered[1:]
        ranks.gather = lambda array, sums=sums: (
            [watches, array] if array.dtype == bool else [*sums, gathered.append(array) or array]
        )
        model, callback = build(), watcher()
        with validating_together(model, ranks):
            history = model.fit(x, y, callbacks=[callback], **options).history
        assert "evaluate" not in vars(model)
        histories.append((history, callback.ends))
    assert (len(gathered) > 1) == (watcher is Watcher)
    for name, values in expected.items():
        np.testing.assert_allclose(histories[-1][0][name], values, rtol=1e-5, err_msg=name)
    history, ends = histories[-1]
    assert len(ends) == (1 if watcher is Watcher else 4)  # Of three batches, and the end.
    np.testing.assert_allclose(ends[-1]["loss"], history["val_loss"][0], rtol=1e-6)


@pytest.mark.torch_alone
def test_where_one_rank_watches_batches_all_go_through_them():
    x, y, _ = make(9)
    model, gathered = build(), []
    ranks = Ranks(1, 2, gathered)
    ranks.gather = lambda array: [np.array(True), array]  # Rank 0 does.
    with validating_together(model, ranks):
        history = model.fit(x, y, validation_data=(x, y), epochs=2, verbose=0).history
    np.testing.assert_allclose(
        history["val_loss"][-1], model.evaluate(x, y, verbose=0)[0], rtol=1e-5
    )


@pytest.mark.torch_alone
def test_a_callback_that_is_a_function_watches_too():
    x, y, _ = make(9)
    model, heard = build(), []
    watcher = keras.callbacks.LambdaCallback()
    watcher.on_test_batch_end = lambda batch, logs=None: heard.append(batch)
    with validating_together(model, Ranks(1, 2, [np.array(False)])):
        model.fit(x, y, validation_data=(x, y), callbacks=[watcher], verbose=0)
    assert heard == [0]


def test_an_evaluation_by_a_callback_is_that_of_keras():
    class Evaluating(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            results.append(self.model.evaluate(x, y, 4, verbose=0))
            results.append(self.model.evaluate(x=x, y=y, verbose=0, callbacks=[]))

    x, y, _ = make(9)
    model, results, gathered = build(), [], []
    with validating_together(model, Ranks(0, 2, gathered)):
        model.fit(x, y, callbacks=[Evaluating()], verbose=0)
    assert not gathered
    expected = model.evaluate(x, y, verbose=0)
    for result in results:
        np.testing.assert_allclose(result[:3], expected[:3], rtol=1e-5)


def test_validation_that_comes_in_batches_is_gone_through_by_each():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return x[index::2], y[index::2]

    x, y, _ = make(9)
    model, gathered = build(), []
    with validating_together(model, Ranks(0, 2, gathered)):
        history = model.fit(x, y, validation_data=Batches(), epochs=2, verbose=0).history
    assert len(history["val_loss"]) == 2
    assert not gathered
