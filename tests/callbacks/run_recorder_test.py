import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.run_record import RunRecord
from keras_deepseek.callbacks import RunRecorder
from keras_deepseek.errors import InvalidInputError


def fit_with(*callbacks, **options):
    model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1)], name="line")
    model.compile("sgd", "mse")
    data = (np.ones((8, 2)), np.ones((8, 1)))
    return model, model.fit(*data, batch_size=2, verbose=0, callbacks=list(callbacks), **options)


def test_every_step_and_the_validation_are_recorded(tmp_path):
    data = (np.ones((4, 2)), np.ones((4, 1)))
    _, history = fit_with(RunRecorder(tmp_path / "run.sqlite"), epochs=2, validation_data=data)
    with RunRecord(tmp_path / "run.sqlite") as record:
        assert [step for step, _ in record.scalars("loss")] == [1, 2, 3, 4, 5, 6, 7, 8]
        values = [value for _, value in record.scalars("val_loss")]
        assert [step for step, _ in record.scalars("val_loss")] == [4, 8]
        np.testing.assert_allclose(values, history.history["val_loss"])
        assert record.properties()["model"] == "line"
        assert record.properties()["backend"] == keras.backend.backend()


def test_every_so_many_steps_is_enough(tmp_path):
    fit_with(RunRecorder(tmp_path / "run.sqlite", every=3), epochs=2)
    with RunRecord(tmp_path / "run.sqlite") as record:
        assert [step for step, _ in record.scalars("loss")] == [3, 4, 6, 8]


def test_a_second_fit_goes_on_counting(tmp_path):
    recorder = RunRecorder(tmp_path / "run.sqlite")
    model, _ = fit_with(recorder)
    model.fit(np.ones((4, 2)), np.ones((4, 1)), batch_size=2, verbose=0, callbacks=[recorder])
    with RunRecord(tmp_path / "run.sqlite") as record:
        assert [step for step, _ in record.scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_a_training_that_fails_leaves_what_was_recorded(tmp_path):
    class Failing(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise RuntimeError("power cut")

    recorder = RunRecorder(tmp_path / "run.sqlite")
    with pytest.raises(RuntimeError, match="power cut"):
        fit_with(recorder, Failing())
    recorder.close()
    with RunRecord(tmp_path / "run.sqlite") as record:
        assert [step for step, _ in record.scalars("loss")] == [1, 2, 3]


def test_another_run_is_not_written_over(tmp_path):
    fit_with(RunRecorder(tmp_path / "run.sqlite"))
    with pytest.raises(InvalidInputError, match="holds an earlier run"):
        fit_with(RunRecorder(tmp_path / "run.sqlite"))
    with RunRecord(tmp_path / "run.sqlite") as record:
        assert [step for step, _ in record.scalars("loss")] == [1, 2, 3, 4]


def test_a_run_that_is_resumed_writes_its_first_steps_again(tmp_path):
    fit_with(RunRecorder(tmp_path / "run.sqlite"))
    fit_with(RunRecorder(tmp_path / "run.sqlite", resume=True))
    with RunRecord(tmp_path / "run.sqlite") as record:
        assert [step for step, _ in record.scalars("loss")] == [1, 2, 3, 4]


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(InvalidInputError, match="`every` must be an integer of at least 0"):
        RunRecorder("run.sqlite", every=-1)


def test_pace_memory_and_learning_rate_are_recorded(tmp_path):
    fit_with(RunRecorder(tmp_path / "run.sqlite"), epochs=2)
    with RunRecord(tmp_path / "run.sqlite") as record:
        names = {"steps_per_second", "samples_per_second", "learning_rate", "process_memory_bytes"}
        assert names <= set(record.names())
        assert record.scalars("learning_rate")[-1] == (8, pytest.approx(0.01))


def test_a_model_that_its_first_step_builds_is_recorded(tmp_path):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    recorder = RunRecorder(tmp_path / "run.sqlite")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[recorder])
    with RunRecord(tmp_path / "run.sqlite") as record:
        assert record.properties()["parameters"] in (3, None)


def test_the_loss_of_each_step_is_computed_from_the_means(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.random.default_rng(0).normal(size=(8, 2)).astype("float32")
    y = np.ones((8, 1), "float32")
    recorder = RunRecorder(tmp_path / "run.sqlite")
    model.fit(x, y, batch_size=2, epochs=2, shuffle=False, verbose=0, callbacks=[recorder])
    losses = ((x @ model.get_weights()[0] - y) ** 2).reshape(4, 2).mean(axis=1)
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        step_losses = [value for _, value in record.scalars("step_loss")]
        np.testing.assert_allclose(step_losses, [*losses, *losses], rtol=1e-4)
        assert record.scalars("epoch") == [(4, 1.0), (8, 2.0)]
        assert [step for step, _ in record.scalars("step_seconds")] == [1, 2, 3, 5, 6, 7]


def test_a_run_that_ended_without_a_word_is_failed(tmp_path):
    recorder = RunRecorder(tmp_path / "run.sqlite")
    with pytest.raises(ZeroDivisionError):
        fit_with(recorder, keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: 1 / 0))
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        assert record.properties()["state"] == "running"
    recorder.close()
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        assert record.properties()["state"] == "failed"
        assert "ended by an error" in record.properties()["failure"]
    ended = record_ended(tmp_path)
    with pytest.raises(InvalidInputError, match="holds an earlier run"):
        fit_with(RunRecorder(tmp_path / "run.sqlite"))
    assert record_ended(tmp_path) == ended


def record_ended(folder):
    with RunRecord(folder / "run.sqlite", read_only=True) as record:
        return record.properties()["ended"]
