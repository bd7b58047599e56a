import pytest

from keras_deepseek.artifacts import KerasDeepSeekError
from keras_deepseek.inference.errors import ClosedError, DeadlineExceededError, OverloadedError


@pytest.mark.parametrize(("seconds", "whole"), [(0.01, 1), (1.0, 1), (2.1, 3)])
def test_an_overload_says_why_and_when_to_try_again(seconds, whole):
    error = OverloadedError("7 rows are waiting", retry_after=seconds)
    assert error.retry_after == whole
    assert str(error) == f"7 rows are waiting. Try again in {whole} s."


def test_the_errors_are_printed_as_one_line_by_the_command_line():
    for kind in (OverloadedError, ClosedError, DeadlineExceededError):
        assert issubclass(kind, KerasDeepSeekError)
