import pytest

from keras_deepseek.errors import (
    InvalidInputError,
    KerasDeepSeekError,
    MissingExtraError,
    unknown_name_message,
)


def test_a_missing_extra_names_the_package_and_the_command_that_brings_it():
    error = MissingExtraError("tf2onnx", "onnx", "to export ONNX")
    assert "pip install 'keras_deepseek[onnx]'" in str(error)
    assert "`tf2onnx` is needed to export ONNX" in str(error)
    assert isinstance(error, ImportError)


def test_all_errors_are_caught_by_the_base_class():
    with pytest.raises(KerasDeepSeekError):
        raise InvalidInputError("no")


@pytest.mark.parametrize(
    ("received", "expected"),
    [("onxx", "did you mean 'onnx'?"), ("ONNX", "did you mean 'onnx'?"), ("zzz", "Known: onnx")],
)
def test_an_unknown_name_gets_the_nearest_one(received, expected):
    assert expected in unknown_name_message("format", received, ["onnx", "savedmodel"])


def test_a_far_name_and_what_is_no_name_get_no_guess():
    assert "did you mean" not in unknown_name_message("format", "zzz", ["onnx"])
    message = unknown_name_message("value of verify", False, ["raise", "warn"])
    assert message == "Unknown value of verify False. Known: raise, warn."
