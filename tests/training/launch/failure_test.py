import signal

import pytest

from keras_deepseek.training.launch.job import Failure, signal_name


@pytest.mark.parametrize(
    ("status", "exit_code", "how"),
    [
        (3, 3, "with exit code 3"),
        (-signal.SIGKILL, 137, "by SIGKILL"),
        (-signal.SIGTERM, 143, "by SIGTERM"),
    ],
)
def test_a_signal_becomes_the_exit_code_that_shells_have_for_it(status, exit_code, how):
    failure = Failure(2, status, [])
    assert failure.exit_code == exit_code
    assert failure.describe() == f"rank 2 ended {how}, and wrote nothing to stderr."


def test_the_last_lines_stand_below():
    text = Failure(0, 1, ["Traceback", "ValueError: x"]).describe()
    assert text.splitlines()[1:] == ["    Traceback", "    ValueError: x"]


def test_a_signal_without_a_name_has_its_number():
    assert signal_name(signal.SIGTERM) == "SIGTERM"
    assert signal_name(1000) == "signal 1000"
