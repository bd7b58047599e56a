"""A training that was stopped, or that died, ends as one that was left alone: to the bit."""

import signal
import warnings

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.backend.keras_private.trainers import build_for_training
from keras_deepseek.callbacks import LRScheduler
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer
from keras_deepseek.training.checkpoints.training_state import read_variables, write_variables
from tests.oracles.interruption import EndAt, KilledError

try:
    import torch  # Before a trainer is made: `seed` reaches what is imported.
except ImportError:
    torch = None

X = np.random.default_rng(0).normal(size=(22, 4)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("int32")
EPOCHS, BATCHES = 4, 6


def build():
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )


def build_small(**settings):
    """Returns what compiles fast, and still is another with other data or random numbers."""
    layers = [keras.Input((4,)), keras.layers.Dropout(0.3), keras.layers.Dense(2)]
    model = keras.Sequential([*layers, keras.layers.Softmax()])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], **settings)
    build_for_training(model, (keras.KerasTensor((4, 4)), keras.KerasTensor((4,), "int32")))
    state = read_variables(model)

    def as_built():
        write_variables(model, state)
        return model

    return as_built


@pytest.fixture(scope="module")
def small():
    """Returns a function that returns a small model as it was built; it is compiled but once."""
    return build_small()


def warm_up(step, total_steps, initial_lr, final_lr):
    return initial_lr + (final_lr - initial_lr) * step / total_steps


def optimizer():
    return keras.optimizers.Adam(0.01, use_ema=True, gradient_accumulation_steps=2)


def train(folder, data, end=None, *, epochs=EPOCHS, model=None, **options):
    """Trains, or goes on; returns the numbers that it ended with, and its history."""
    settings = {"checkpoint_dir": folder, "checkpoint_every": 4, "seed": 5}
    if model is None:
        settings["loss"] = "sparse_categorical_crossentropy"
        schedule = LRScheduler(func=warm_up, total_steps=20, final_lr=0.02)
        trainer = Trainer(
            build, optimizer=optimizer(), metrics=["accuracy"], callbacks=[schedule], **settings
        )
    else:
        trainer = Trainer(model, **settings)
    options = {"callbacks": [EndAt(*end)] if end else [], **options}
    history = trainer.fit(**data(), epochs=epochs, verbose=0, resume=True, **options)
    return values(trainer.model), history.history


def values(model):
    groups = (model.variables, model.optimizer.variables, model.metrics_variables)
    return {
        f"{index} {variable.path}": keras.ops.convert_to_numpy(variable.value).copy()
        for group in groups
        for index, variable in enumerate(group)
    }


def assert_same(received, expected):
    """Asserts that two trainings ended with the same numbers, to the bit."""
    assert received[1] == expected[1]
    for (name, value), other in zip(received[0].items(), expected[0].values(), strict=True):
        np.testing.assert_array_equal(value, other, err_msg=name)


def assert_resumes(tmp_path, data, *ends, **options):
    """Asserts that a training that ended so and so often ends like one left alone."""
    expected = train(tmp_path / "left_alone", data, **options)
    for end in ends:
        with pytest.raises((SystemExit, KilledError)) as ended:
            train(tmp_path / "ended", data, end, **options)
        assert ended.type is KilledError or ended.value.code == 0
    assert_same(train(tmp_path / "ended", data, **options), expected)


def arrays():
    return {"x": X, "y": Y, "batch_size": 4}


class Batches(keras.utils.PyDataset):
    """Draws noise of its own, and of NumPy's shared generator."""

    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(1)
        self.order = np.arange(len(X))

    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        rows = self.order[4 * index : 4 * index + 4]
        noise = np.random.normal(size=(len(rows), 4))  # noqa: NPY002
        return (X[rows] + noise).astype("float32"), Y[rows]

    def on_epoch_end(self):
        self.generator.shuffle(self.order)


def generator():
    while True:
        rows = np.random.permutation(len(X))[:4]  # noqa: NPY002
        yield X[rows], Y[rows]


def tensorflow_data():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(22, seed=1)
    return {"x": data.filter(lambda x, y: x[0] > -5.0).batch(4)}  # Of a length that nobody knows.


def data_loader():
    if torch is None:
        pytest.skip("PyTorch is not installed.")
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return {"x": torch.utils.data.DataLoader(data, 4, shuffle=True)}


def grain_data():
    grain = pytest.importorskip("grain")
    rows = [(X[index], Y[index]) for index in range(len(X))]
    return {"x": grain.MapDataset.source(rows).shuffle(seed=1).batch(4)}


STOPPED = (4, signal.SIGTERM)
AT_THE_END_OF_AN_EPOCH = (2, signal.SIGTERM)
DIED = (3, KilledError)


def test_arrays_with_validation_and_callbacks_that_remember(tmp_path):
    options = {"validation_split": 0.25, "class_weight": {0: 1.0, 1: 2.0}}
    ends = [(1, signal.SIGTERM), (6, KilledError)]
    assert_resumes(tmp_path, arrays, *ends, **options)


@pytest.mark.parametrize(
    "data",
    [
        lambda: {"x": Batches()},
        lambda: {"x": generator(), "steps_per_epoch": 5},
        lambda: {**arrays(), "steps_per_epoch": 4, "shuffle": "batch"},
        tensorflow_data,
        data_loader,
        grain_data,
    ],
    ids=["PyDataset", "generator", "steps_per_epoch", "tf.data", "DataLoader", "Grain"],
)
def test_data_of_each_kind(tmp_path, data, small):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Epoch . ended after 2 batches")  # Of `steps_per_epoch`.
        assert_resumes(tmp_path, data, STOPPED, AT_THE_END_OF_AN_EPOCH, DIED, model=small)


def test_several_steps_an_execution(tmp_path):
    if keras.backend.backend() == "torch":
        pytest.skip("Keras on PyTorch runs one step an execution.")
    model = build_small(steps_per_execution=4)
    assert_resumes(tmp_path, arrays, (1, signal.SIGTERM), (2, KilledError), model=model)


def test_a_batch_that_jax_takes_ahead_on_a_gpu(tmp_path, monkeypatch, small):
    if keras.backend.backend() != "jax":
        pytest.skip("Only Keras on JAX does so.")
    import jax

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def data():
        return {"x": generator(), "steps_per_epoch": 5}

    assert_resumes(tmp_path, data, STOPPED, DIED, model=small)


def test_callbacks_see_the_training_go_on(tmp_path, small):
    class Seeing(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seen = []

        def on_train_begin(self, logs=None):
            at_start.append(int(self.model.optimizer.iterations))

        def on_train_batch_begin(self, batch, logs=None):
            self.seen.append(("begin", batch))

        def on_train_batch_end(self, batch, logs=None):
            self.seen.append(("end", batch))

        def on_epoch_end(self, epoch, logs=None):
            self.seen.append(("epoch", epoch))

    at_start = []
    first, second = Seeing(), Seeing()
    end = EndAt(8, signal.SIGTERM)
    with pytest.raises(SystemExit):
        train(tmp_path, arrays, callbacks=[first, end], model=small)
    train(tmp_path, arrays, epochs=2, callbacks=[second], model=small)
    batches = [(what, batch) for batch in range(BATCHES) for what in ("begin", "end")]
    assert second.seen == [*batches, ("epoch", 0), *batches, ("epoch", 1)]
    assert at_start == [0, 8]


def test_a_finished_training_is_not_continued(tmp_path, small):
    expected = train(tmp_path, arrays, model=small)
    assert_same(train(tmp_path, arrays, model=small), expected)


@pytest.mark.torch_alone
def test_a_finished_training_continues_with_more_epochs(tmp_path):
    train(tmp_path, arrays, epochs=1)  # At its end the weights become their moving averages.
    longer = train(tmp_path, arrays, epochs=2)
    assert_same(longer, train(tmp_path / "at_once", arrays, epochs=2))


def test_early_stopping_is_the_same_in_a_resumed_training(tmp_path, small):
    def options():
        stopping = keras.callbacks.EarlyStopping(
            "accuracy", mode="min", min_delta=2.0, patience=2, restore_best_weights=True
        )
        return {"callbacks": [stopping], "model": small}

    expected = train(tmp_path / "left_alone", arrays, epochs=9, **options())
    stopped_after = len(expected[1]["loss"])
    assert stopped_after < 9
    callbacks = [*options()["callbacks"], EndAt(2 * BATCHES + 2, KilledError)]
    with pytest.raises(KilledError):
        train(tmp_path / "ended", arrays, epochs=9, model=small, callbacks=callbacks)
    assert_same(train(tmp_path / "ended", arrays, epochs=9, **options()), expected)
    # And it stays stopped.
    assert_same(train(tmp_path / "ended", arrays, epochs=9, **options()), expected)


def test_the_best_epoch_is_kept(tmp_path, small):
    trainer = Trainer(
        small,
        checkpoint_dir=tmp_path,
        checkpoint_every=1000,
        keep_last=1,
        keep_best=("val_loss", "max"),
        seed=1,
    )
    history = trainer.fit(**arrays(), epochs=4, verbose=0, validation_data=(X, Y)).history
    best = int(np.argmax(history["val_loss"])) + 1
    folder = CheckpointFolder(tmp_path)
    assert folder.steps() == sorted({best * BATCHES, 4 * BATCHES})
    assert folder.read(best * BATCHES).score == pytest.approx(max(history["val_loss"]))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("val_los", {"validation_data": (X, Y)}, "name a log .*, val_loss; received 'val_los'"),
        ("val_loss", {}, "'val_loss', and there are no validation data"),
        (
            "acuracy",
            {"validation_data": (X, Y), "validation_freq": 2},
            "name a log of the training: accuracy, loss; received 'acuracy'",
        ),
    ],
)
def test_an_unknown_log_in_keep_best_ends_the_training(tmp_path, small, name, options, match):
    model = small()
    trainer = Trainer(model, checkpoint_dir=tmp_path, checkpoint_every=99, keep_best=(name, "min"))
    with pytest.raises(InvalidInputError, match=f"{match}.*is saved: .*resume=True"):
        trainer.fit(**arrays(), epochs=3, verbose=0, **options)
    trainer = Trainer(small, checkpoint_dir=tmp_path, keep_best=("loss", "min"))
    assert trainer.resume() == BATCHES
    assert len(trainer.fit(**arrays(), epochs=3, verbose=0, **options).epoch) == 3


def test_an_epoch_without_a_validation_may_lack_its_logs(tmp_path, small):
    trainer = Trainer(small, checkpoint_dir=tmp_path, keep_best=("val_loss", "min"))
    data = {"validation_data": (X, Y), "validation_freq": 2}
    history = trainer.fit(**arrays(), epochs=3, verbose=0, **data).history
    assert len(history["val_loss"]) == 1
    assert 2 * BATCHES in CheckpointFolder(tmp_path).steps()


@pytest.mark.parametrize(("every", "expected"), [(None, [None] * 6), (4, [3, 2, 1, 4, 3, 2])])
def test_steps_until_the_next_checkpoint_are_known(tmp_path, small, every, expected):
    counts = []
    trainer = Trainer(small(), checkpoint_dir=tmp_path, checkpoint_every=every)
    data = {"x": X, "y": Y, "batch_size": 4, "epochs": 1, "callbacks": None, "verbose": 0}
    with trainer._session.training(data, [], resume=False) as fit_arguments:
        callbacks = fit_arguments["callbacks"]
        for step in range(6):
            callbacks._step = step + 1
            counts.append(callbacks.num_until_pause)
    assert counts == expected
