from keras_deepseek.artifacts import KerasDeepSeekError
from keras_deepseek.inference.errors import ClosedError, OverloadedError


def test_an_overload_says_how_much_waits_and_when_to_try_again():
    error = OverloadedError(waiting=7, limit=8, retry_after=3)
    assert error.retry_after == 3
    assert "7 rows are waiting and at most 8" in str(error)
    assert "in 3 s" in str(error)


def test_both_errors_are_printed_as_one_line_by_the_command_line():
    assert issubclass(OverloadedError, KerasDeepSeekError)
    assert issubclass(ClosedError, KerasDeepSeekError)
