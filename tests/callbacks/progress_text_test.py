import pytest

from keras_deepseek.callbacks.progress_display import count, describe, duration, number
from keras_deepseek.callbacks.training_pace import TrainingPace


@pytest.fixture
def pace():
    now = iter([0.0, 1.0, 2.0])
    pace = TrainingPace(lambda: next(now))
    pace.after_step(0)
    pace.after_step(1)
    return pace


def test_without_samples_steps_are_counted(pace):
    assert describe(pace, {"loss": 0.5}) == ["1 steps/s", "loss: 0.5"]


def test_samples_the_rate_and_the_memory_have_their_units(pace):
    pace.samples_per_step, pace.learning_rate = 2048.0, 3e-4
    pace.memory = {"process_memory_bytes": 3 * 2**29, "device_memory_bytes": 2**33}
    assert describe(pace, {"loss": 0.123456, "accuracy": 1.0}) == [
        "2.05k samples/s",
        "loss: 0.1235",
        "accuracy: 1",
        "learning_rate: 0.0003",
        "memory: 1.50 GiB",
        "device: 8.00 GiB",
    ]


def test_what_a_callback_logged_goes_before(pace):
    pace.samples_per_step = 8.0
    logs = {"tokens_per_second": 1.5e6, "model_flops_utilization": 0.4125, "learning_rate": 0.5}
    assert describe(pace, logs) == ["1.5M tokens/s", "MFU: 41.2%", "learning_rate: 0.5"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0421, "42ms"), (1.0, "1s"), (59.6, "1:00"), (184, "3:04"), (3723, "1:02:03")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.123, "0.123"), (999, "999"), (12345, "12.3k"), (1.5e9, "1.5G")]
)
def test_counts(value, text):
    assert count(value) == text


def test_what_is_no_number_is_shown_as_it_is():
    assert number(float("nan")) == "nan"
    assert number([1, 2]) == "[1, 2]"
