import logging
import re
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.checkpoint import Checkpoint
from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.artifacts.run_record import RunRecord
from keras_deepseek.errors import CheckpointError, InvalidInputError
from keras_deepseek.training import Trainer

X = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")

TRAINING = """
import hashlib, json, sys
import keras
import numpy as np
from keras_deepseek.callbacks import LRScheduler
from keras_deepseek.training import Trainer

X = np.random.default_rng(0).normal(size=(30, 4)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("int32")


class Handshake(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print("step", flush=True)
        sys.stdin.readline()


def build():
    return keras.Sequential([
        keras.Input((4,)),
        keras.layers.Dense(8, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(2),
    ])


def schedule(step, total_steps, initial_lr, final_lr):
    return final_lr * (1 - step / total_steps)


trainer = Trainer(
    build,
    optimizer=keras.optimizers.Adam(use_ema=True, gradient_accumulation_steps=2),
    micro_batches=2,
    gradient_clip=("global_norm", 1.0),
    guard="skip",
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    precision="float16",
    checkpoint_dir=sys.argv[1],
    checkpoint_every=2,
    keep_best=("val_loss", "min"),
    seed=11,
    callbacks=[
        LRScheduler(func=schedule, total_steps=30, final_lr=0.01),
        keras.callbacks.EarlyStopping(patience=20, restore_best_weights=True),
        Handshake(),
    ],
)
history = trainer.fit(
    X, Y, batch_size=8, epochs=8, validation_split=0.2, verbose=0, resume=True
).history
digest = hashlib.sha256(json.dumps(history).encode())
for variable in trainer.model.variables + trainer.model.optimizer.variables:
    digest.update(keras.ops.convert_to_numpy(variable.value).tobytes())
print("ended", digest.hexdigest(), flush=True)
"""


def run_training(folder, end=None, steps=1, training=TRAINING):
    """Runs the training in a process of its own, to its end or to an end after so many steps.

    Returns what it printed last and its exit code.
    """
    command = [sys.executable, "-c", training, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        while line == "step\n":
            steps -= 1
            process.stdin.write("\n")
            process.stdin.flush()  # And while it makes the next step or writes a checkpoint:
            if steps == 0 and end is not None:
                process.send_signal(end)
                process.stdin.close()
                break
            line = process.stdout.readline()
        remaining_output = process.stdout.read()
        errors = process.stderr.read()
        code = process.wait()
    assert code in (0, -signal.SIGKILL), errors
    return (line + remaining_output).splitlines()[-1:], code


@pytest.mark.nightly
def test_a_process_that_is_killed_repeatedly_ends_with_the_same_numbers(tmp_path):
    (expected,), code = run_training(tmp_path / "left_alone")
    assert expected.startswith("ended ")
    assert code == 0
    for end, steps in ((signal.SIGTERM, 3), (signal.SIGKILL, 4), (signal.SIGKILL, 1)):
        printed, code = run_training(tmp_path / "killed", end, steps)
        assert not printed[0].startswith("ended")
        assert code == (0 if end is signal.SIGTERM else -signal.SIGKILL)
    assert run_training(tmp_path / "killed") == ([expected], 0)
    if keras.backend.backend() == "torch":  # These trainings were recorded; this one is not.
        eager = TRAINING.replace("history = ", "trainer.model.run_eagerly = True\nhistory = ")
        assert run_training(tmp_path / "eager", training=eager) == ([expected], 0)


def build():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def fit(trainer, rows=24, **options):
    options = {"batch_size": 4, "verbose": 0, **options}
    return trainer.fit(X[:rows], X[:rows, :1], **options)


def test_without_a_folder_no_checkpoint_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(Trainer(build))
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_taken_every_n_steps_and_at_the_end(tmp_path):
    fit(Trainer(build, checkpoint_dir=tmp_path / "a", checkpoint_every=4, keep_last=9), epochs=2)
    assert CheckpointFolder(tmp_path / "a").steps() == [4, 8, 12]
    fit(Trainer(build, checkpoint_dir=tmp_path / "b", checkpoint_every=5, keep_last=9), epochs=2)
    assert CheckpointFolder(tmp_path / "b").steps() == [5, 10, 12]
    fit(Trainer(build, checkpoint_dir=tmp_path / "c", keep_last=9), epochs=3)
    assert CheckpointFolder(tmp_path / "c").steps() == [6, 12, 18]


def test_a_second_training_does_not_mix_with_the_first(tmp_path):
    fit(Trainer(build, checkpoint_dir=tmp_path))
    with pytest.raises(InvalidInputError, match=r"the last of step 6.*resume=True.*another folder"):
        fit(Trainer(build, checkpoint_dir=tmp_path))


def test_a_torn_file_is_passed_over_and_then_written_anew(tmp_path, caplog):
    trainer = Trainer(build, checkpoint_dir=tmp_path, checkpoint_every=2, keep_last=3, seed=1)
    expected = fit(trainer, epochs=2).history
    newest = tmp_path / "step_0000000012.checkpoint"
    newest.write_bytes(newest.read_bytes()[:200])
    again = Trainer(build, checkpoint_dir=tmp_path, checkpoint_every=2, keep_last=3, seed=1)
    with caplog.at_level(logging.INFO):
        assert fit(again, epochs=2, resume=True).history == expected
    assert "is damaged" in caplog.text
    assert "continues after step 10" in caplog.text
    assert CheckpointFolder(tmp_path).latest().step == 12


def test_resume_gives_the_weights_at_once_and_fit_goes_on_from_there(tmp_path):
    trainer = Trainer(build, checkpoint_dir=tmp_path)
    assert trainer.resume() is None
    fit(trainer)
    again = Trainer(build, checkpoint_dir=tmp_path)
    assert again.resume() == 6
    np.testing.assert_array_equal(again.predict(X, verbose=0), trainer.predict(X, verbose=0))
    assert len(fit(again, epochs=3).history["loss"]) == 3
    assert CheckpointFolder(tmp_path).latest().step == 18


def test_a_checkpoint_keeps_its_learning_rate_and_says_so(tmp_path, caplog):
    def train(rate, **arguments):
        trainer = Trainer(build, optimizer=keras.optimizers.SGD(rate), checkpoint_dir=tmp_path)
        fit(trainer, resume=True, **arguments)
        return float(trainer.model.optimizer.learning_rate)

    class Halve(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.125

    train(0.25, callbacks=[Halve()])
    # What the training itself has made of its rate is no other rate.
    assert train(0.25, epochs=2) == 0.125
    assert "learning rate" not in caplog.text
    assert train(1.0, epochs=3) == 0.125
    assert "began with a learning rate of 0.25 and continues with 0.125, " in caplog.text
    assert "The optimizer's rate, 1, is not used" in caplog.text


def test_another_precision_logs_a_warning(tmp_path, caplog):
    def train(precision, epochs):
        trainer = Trainer(build, optimizer="sgd", precision=precision, checkpoint_dir=tmp_path)
        fit(trainer, resume=True, epochs=epochs)

    train(None, 1)
    train("float32", 2)  # Which the model's own is.
    assert "began in" not in caplog.text
    train("bfloat16", 3)
    assert (
        "The training began in float32 and continues in mixed_bfloat16: its results" in caplog.text
    )


def test_a_model_that_is_not_built_yet_resumes(tmp_path, caplog):
    def build_later():
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    fit(Trainer(build_later, checkpoint_dir=tmp_path))
    again = Trainer(build_later, checkpoint_dir=tmp_path)
    assert again.resume() == 6
    assert "is not built yet. It gets the weights of the checkpoint when" in caplog.text
    assert len(fit(again, epochs=2).history["loss"]) == 2


def test_without_a_seed_the_order_of_the_data_is_kept_all_the_same(tmp_path):
    class Seeing(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            losses.append(logs["loss"])

    losses = []
    trainer = Trainer(build, checkpoint_dir=tmp_path, checkpoint_every=2, keep_last=9)
    fit(trainer, callbacks=[Seeing()])
    CheckpointFolder(tmp_path).discard_after(2)
    expected, losses = losses, []
    fit(Trainer(build, checkpoint_dir=tmp_path), callbacks=[Seeing()], resume=True)
    assert losses == expected[2:]


def test_a_wrong_argument_is_refused_at_once(tmp_path):
    for arguments, match in (({"seed": -1}, "`seed` must be"), ({"keep_last": 0}, "`keep_last`")):
        with pytest.raises(InvalidInputError, match=match):
            Trainer(build, **{"checkpoint_dir": tmp_path, **arguments})


def test_to_resume_without_a_folder_is_refused():
    for ask in (lambda trainer: trainer.resume(), lambda trainer: fit(trainer, resume=True)):
        with pytest.raises(InvalidInputError, match="no checkpoint to resume from"):
            ask(Trainer(build))


def test_a_checkpoint_of_another_backend_is_refused(tmp_path):
    fit(Trainer(build, checkpoint_dir=tmp_path))
    folder = CheckpointFolder(tmp_path)
    checkpoint = folder.latest()
    folder.write(Checkpoint(7, {**checkpoint.state, "backend": "abacus"}))
    with pytest.raises(InvalidInputError, match="made on abacus, and Keras runs on"):
        Trainer(build, checkpoint_dir=tmp_path).resume()


def test_other_data_and_another_model_are_refused(tmp_path):
    fit(Trainer(build, checkpoint_dir=tmp_path))
    with pytest.raises(InvalidInputError, match="num_batches is 5 and was 6"):
        fit(Trainer(build, checkpoint_dir=tmp_path), rows=20, epochs=2, resume=True)

    def build_other():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        model.compile("sgd", "mse")
        return model

    with pytest.raises(InvalidInputError, match="the checkpoint has"):
        Trainer(build_other, checkpoint_dir=tmp_path).resume()


def test_a_full_disk_ends_the_training_and_the_last_checkpoint_stands(tmp_path, monkeypatch):
    whole = Checkpoint.write

    def write(self, path):
        if self.step > 5:
            raise CheckpointError("No space left on device")
        whole(self, path)

    monkeypatch.setattr(Checkpoint, "write", write)
    with pytest.raises(CheckpointError, match="No space left on device"):
        fit(Trainer(build, checkpoint_dir=tmp_path, checkpoint_every=2), epochs=3)
    assert CheckpointFolder(tmp_path).latest().step == 4


def test_an_error_of_the_data_keeps_the_last_checkpoint(tmp_path):
    def data():
        for index in range(20):
            if index == 5:
                raise KeyError("row 17")
            yield X[:4], X[:4, :1]

    trainer = Trainer(build, checkpoint_dir=tmp_path, checkpoint_every=2)
    with pytest.raises(KeyError, match="row 17"):
        trainer.fit(data(), verbose=0)
    assert CheckpointFolder(tmp_path).latest().step == 4


def test_sigterm_leaves_its_handler_as_it_was(tmp_path):
    old_handler = signal.getsignal(signal.SIGTERM)
    fit(Trainer(build, checkpoint_dir=tmp_path))
    assert signal.getsignal(signal.SIGTERM) is old_handler


def test_sigterm_after_the_last_step_ends_the_process_too(tmp_path):
    class AtTheEnd(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        fit(Trainer(build, checkpoint_dir=tmp_path, callbacks=[AtTheEnd()]))
    assert ended.value.code == 0
    assert CheckpointFolder(tmp_path).latest().step == 6


def test_sigterm_in_an_epoch_s_validation_waits_for_its_end(tmp_path):
    class InValidation(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        fit(
            Trainer(build, checkpoint_dir=tmp_path, callbacks=[InValidation()]),
            epochs=3,
            validation_data=(X, X[:, :1]),
        )
    checkpoint = CheckpointFolder(tmp_path).latest()
    assert (checkpoint.step, checkpoint.state["epoch"], checkpoint.state["batch"]) == (6, 1, 0)


def test_the_run_record_goes_on_as_well(tmp_path):
    def train(epochs):
        trainer = Trainer(build, checkpoint_dir=tmp_path / "c", run_record=tmp_path / "run.sqlite")
        fit(trainer, epochs=epochs, resume=True)

    class DieError(Exception):
        pass

    def die(batch, logs):
        raise DieError

    trainer = Trainer(build, checkpoint_dir=tmp_path / "c", run_record=tmp_path / "run.sqlite")
    dies = keras.callbacks.LambdaCallback(on_train_batch_end=die)
    with pytest.raises(DieError):  # Before the first checkpoint, and after a step was recorded.
        fit(trainer, resume=True, callbacks=[dies])
    train(1)
    train(2)
    with RunRecord(tmp_path / "run.sqlite") as record:
        assert [step for step, _ in record.scalars("loss")] == list(range(1, 13))


def test_resuming_a_stopped_training_logs_a_warning(tmp_path, caplog):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    fit(Trainer(build, checkpoint_dir=tmp_path), callbacks=[Stop()])
    history = fit(Trainer(build, checkpoint_dir=tmp_path), resume=True, epochs=3).history
    assert len(history["loss"]) == 1
    assert "ended after step 6, before its last epoch" in caplog.text


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_training_that_is_over_says_so(tmp_path, caplog, capsys, epochs):
    expected = fit(Trainer(build, checkpoint_dir=tmp_path), epochs=2).history
    again = Trainer(build, checkpoint_dir=tmp_path)
    assert fit(again, resume=True, epochs=epochs, verbose=2).history == expected
    message = f"Nothing is left to train: .* of step 12 .* end of epoch 2, and epochs={epochs}"
    assert re.search(message, caplog.text)
    assert "continues" not in capsys.readouterr().out + caplog.text
