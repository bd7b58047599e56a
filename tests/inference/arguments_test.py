import pytest

from keras_deepseek.artifacts import InvalidInputError, NotSupportedError, Signature, TensorSpec
from keras_deepseek.inference.arguments import (
    check_batch_axis,
    check_batch_size,
    check_host,
    check_name,
    check_option_names,
    check_port,
    check_request_options,
    check_seconds,
    check_version,
)


@pytest.mark.parametrize("name", ["digits", "my-model_2.1"])
def test_a_name_of_letters_digits_and_marks_is_taken(name):
    check_name(name)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a:predict", "é", None])
def test_a_name_that_would_break_the_url_is_refused(name):
    with pytest.raises(InvalidInputError, match="part of the URL"):
        check_name(name)


def test_a_version_starts_at_1_and_a_folder_0_is_named():
    check_version(1, "models/1")
    with pytest.raises(InvalidInputError, match=r"version 0 for 'models/0'\. .* Rename the folder"):
        check_version(0, "models/0")
    for version in (0, "1", None):
        with pytest.raises(InvalidInputError, match=r"`version` must be a positive integer"):
            check_version(version, object())


@pytest.mark.parametrize("value", [None, 1, 0.5])
def test_a_time_or_none_is_taken(value):
    check_request_options(value, priority=0)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1"])
def test_a_time_that_is_none_is_refused(value):
    with pytest.raises(InvalidInputError, match="timeout"):
        check_request_options(value, priority=0)


def test_a_wait_may_be_none_at_all_but_not_missing():
    check_seconds("max_wait", 0, or_zero=True)
    check_seconds("max_wait", 0.5, or_zero=True)
    for value in (None, -1, True, float("inf"), "1"):
        with pytest.raises(InvalidInputError, match="max_wait"):
            check_seconds("max_wait", value, or_zero=True)


@pytest.mark.parametrize("priority", [1.0, True, None])
def test_a_priority_is_a_whole_number(priority):
    with pytest.raises(InvalidInputError, match="priority"):
        check_request_options(None, priority)


@pytest.mark.parametrize("value", ["dynamic", 1, 8])
def test_dynamic_and_sizes_up_to_the_largest_are_taken(value):
    check_batch_size(value, 8)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("dynamc", "must be \"dynamic\" or an integer, received 'dynamc'"),
        (0, "a positive integer"),
        (True, "received True"),
        (9, "above max_batch_size=8"),
        (2.0, "or an integer, received 2.0"),
    ],
)
def test_another_batch_size_is_refused_with_what_is_wrong(value, message):
    with pytest.raises(InvalidInputError, match=message):
        check_batch_size(value, 8)


@pytest.mark.parametrize("shape", [(8, 2), ()])
def test_an_input_without_a_free_batch_axis_is_refused(shape):
    signature = Signature((TensorSpec("x", shape, "float32"),), ())
    with pytest.raises(NotSupportedError, match="leave the batch size open"):
        check_batch_axis(signature)


@pytest.mark.parametrize("port", ["8501", None, 0.5, True, -1, 65536])
def test_what_is_no_port_is_refused(port):
    with pytest.raises(InvalidInputError, match="from 0 to 65535"):
        check_port("http_port", port)


@pytest.mark.parametrize("host", [None, "", 5])
def test_what_is_no_host_is_refused(host):
    with pytest.raises(InvalidInputError, match="a host name or an IP address"):
        check_host("host", host)


def test_an_option_that_there_is_not_is_refused_with_the_nearest():
    check_option_names({"timeout": 1, "model": "a", "client": "b"})
    with pytest.raises(InvalidInputError, match=r"option of a request 'timout': did you mean 'tim"):
        check_option_names({"model": "a", "timout": 1e-9})
