import contextlib
import re

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.errors import InvalidInputError, TrainingDivergedError
from keras_deepseek.training import StepGuard, Trainer
from tests.oracles.interruption import EndAt, KilledError

X = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
Y = X[:, :1]
BAD = X.copy()
BAD[9] = np.nan  # In the third batch of four rows.


def build():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )


def make(model, guard, **arguments):
    optimizer = arguments.pop("optimizer", None) or keras.optimizers.Adam(0.01)
    return Trainer(
        model, optimizer=optimizer, loss="mse", metrics=["mae"], guard=guard, **arguments
    )


def fit(trainer, x, y=Y, **arguments):
    return trainer.fit(x, y, batch_size=4, shuffle=False, verbose=0, **arguments).history


@pytest.mark.torch_alone
def test_a_bad_step_stops_the_training_and_leaves_the_weights_before_it():
    model, reference = build(), build()
    with pytest.raises(TrainingDivergedError, match="loss of batch 3 of epoch 1 is nan; its"):
        fit(make(model, "stop"), BAD)
    # The step after it was made before it was seen, with the batch after it.
    fit(
        make(reference, None),
        np.concatenate([X[:8], X[12:16]]),
        Y[:12] * 0 + np.nan_to_num(np.concatenate([Y[:8], Y[12:16]])),
    )
    for received, expected in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", [None, "float16"])
def test_a_bad_batch_is_skipped_as_if_it_had_not_been_there(precision):
    keep = np.delete(np.arange(24), np.arange(8, 12))
    logs, weights = [], []
    for x, y in ((BAD, Y), (X[keep], Y[keep])):
        model = build()
        history = fit(make(model, "skip", precision=precision), x, y, epochs=2)
        logs.append(history)
        weights.append(model.get_weights())
    assert logs[0]["skipped_steps"] == [1.0, 2.0]
    assert logs[1]["skipped_steps"] == [0.0, 0.0]
    for name in ("loss", "mae"):
        np.testing.assert_allclose(logs[0][name], logs[1][name], rtol=1e-5)
    for received, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


def test_most_in_a_row_ends_the_training(caplog):
    nothing = np.full_like(X, np.nan)
    with pytest.raises(
        TrainingDivergedError, match=r"skipped \(4 in a row\), and the training stopped"
    ):
        fit(make(build(), StepGuard("skip", most_in_a_row=4)), nothing)
    assert caplog.text.count("its update was skipped") == 3


@pytest.mark.parametrize("by", ["fit", "steps"])
def test_an_epoch_of_bad_steps_logs_nan(tmp_path, by):
    def batches():
        for x in (np.full_like(X[:4], np.nan), X[:4], X[4:8]):
            yield from [(x, Y[:4])] * 2

    early = keras.callbacks.EarlyStopping("loss", patience=9)
    best = ("mae", "min", 1)
    trainer = make(build(), "skip", checkpoint_dir=tmp_path, keep_last=1, keep_best=best)
    history = keras.callbacks.History()
    options = {"steps_per_epoch": 2, "epochs": 3, "callbacks": [early, history]}
    if by == "fit":
        trainer.fit(batches(), verbose=0, **options)
    else:
        list(trainer.steps(batches(), **options))
    logs = history.history
    assert logs["skipped_steps"] == [2.0, 2.0, 2.0]
    for name in ("loss", "mae"):
        assert np.isnan(logs[name]).tolist() == [True, False, False]
    assert early.best == min(logs["loss"][1:])
    mae_by_step = {4: logs["mae"][1], 6: logs["mae"][2]}
    assert CheckpointFolder(tmp_path).steps() == sorted({6, min(mae_by_step, key=mae_by_step.get)})


@pytest.mark.torch_alone
def test_the_guard_does_not_affect_validation_or_a_later_fit():
    model = build()
    history = fit(make(model, "skip"), X, validation_data=(X, Y))
    assert set(history) == {"loss", "mae", "skipped_steps", "val_loss", "val_mae"}
    assert set(model.evaluate(X, Y, verbose=0, return_dict=True)) == {"loss", "mae"}
    model.fit(X, Y, verbose=0)
    assert len(model.metrics) == 2


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="It makes one step at once.")
def test_each_bad_step_of_an_execution_is_named(caplog):
    x = X.copy()
    x[[5, 13, 17]] = np.nan  # Batches 2, 4 and 5 of six.
    model = build()
    model.compile(keras.optimizers.Adam(0.01), "mse", steps_per_execution=3)
    fit(Trainer(model, guard="skip"), x)
    assert re.findall(r"The loss of (batch \d of epoch \d) is nan", caplog.text) == [
        f"batch {number} of epoch 1" for number in (2, 4, 5)
    ]


class Overflowing(Trainer):
    """A square root whose gradient is not finite at 0, as it is in the second batch."""

    def train_step(self, x, y=None, sample_weight=None):
        loss = keras.ops.mean(keras.ops.square(self.model(x, training=True)))
        return loss + keras.ops.sum(keras.ops.sqrt(keras.ops.abs(x[0, 0] * loss)))


def test_each_message_describes_its_own_batch(caplog):
    x = X.copy()
    x[4, 0], x[8] = 0.0, np.nan
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    fit(Overflowing(model, optimizer="sgd", loss="mse", guard="skip"), x, epochs=1)
    ours = [record for record in caplog.records if record.name.startswith("keras_deepseek")]
    first, second = (record.message for record in ours)
    assert re.match(r"The gradients of batch 2 of epoch 1 are not .*\(its loss is \d", first)
    assert second.startswith("The loss of batch 3 of epoch 1 is nan; its update")


def test_roll_back_restores_the_checkpoint(tmp_path, caplog):
    model = build()
    trainer = make(model, "roll_back", checkpoint_dir=tmp_path, checkpoint_every=2)
    history = fit(trainer, BAD)
    assert "restored from the checkpoint of step 2" in caplog.text
    assert history["skipped_steps"] == [1.0]
    # Of six steps two were kept, one was bad, one was made before that was seen, and two followed.
    assert int(model.optimizer.iterations.value) == 4


def test_roll_back_before_the_first_checkpoint_skips(tmp_path, caplog):
    trainer = make(build(), "roll_back", checkpoint_dir=tmp_path, checkpoint_every=5)
    fit(trainer, BAD)
    assert "its update was skipped; there is no checkpoint yet" in caplog.text


def test_roll_back_needs_checkpoints():
    with pytest.raises(InvalidInputError, match="guard='roll_back' needs checkpoints"):
        make(build(), "roll_back")


def test_no_checkpoint_is_taken_of_a_bad_step_that_stops_the_training(tmp_path):
    trainer = make(build(), "stop", checkpoint_dir=tmp_path, checkpoint_every=3)
    with pytest.raises(TrainingDivergedError, match="loss of batch 3 of epoch 1 is nan"):
        fit(trainer, BAD)
    assert CheckpointFolder(tmp_path).steps() == []


@pytest.mark.torch_alone
@pytest.mark.parametrize("bad_row", [9, 21])  # In the steps 3 and 6, of which a checkpoint is due.
def test_a_killed_training_resumes_after_a_roll_back(tmp_path, bad_row):
    x = X.copy()
    x[bad_row] = np.nan
    weights_by_run = []
    for name, end in (("untouched", None), ("killed", 7)):
        for ends_at in dict.fromkeys((end, None)):
            trainer = make(
                build(), "roll_back", checkpoint_dir=tmp_path / name, checkpoint_every=3, seed=1
            )
            callbacks = [] if ends_at is None else [EndAt(ends_at)]
            with contextlib.suppress(KilledError):
                fit(trainer, x, epochs=2, callbacks=callbacks, resume=True)
        weights_by_run.append(trainer.model.get_weights())
    for expected, received in zip(*weights_by_run, strict=True):
        np.testing.assert_array_equal(expected, received)
