import math
from pathlib import Path

import numpy as np
import pytest

from keras_deepseek.checks import (
    check_boolean,
    check_file_path,
    check_integer,
    check_number,
    check_path,
    check_sources,
)
from keras_deepseek.errors import InvalidInputError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_an_integer_is_returned_as_pythons(value):
    assert type(check_integer("num_heads", value)) is int


def test_a_default_stands_for_none_and_not_for_zero():
    assert check_integer("num_heads", None, default=2) == 2
    with pytest.raises(InvalidInputError, match="`num_heads` must be a positive integer"):
        check_integer("num_heads", 0, default=2)


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None, True, np.array([3])])
def test_what_is_no_positive_integer_is_refused_by_the_arguments_name(value):
    with pytest.raises(InvalidInputError, match="`num_heads` must be a positive integer, received"):
        check_integer("num_heads", value)


def test_another_least_is_named():
    assert check_integer("seed", 0, minimum=0) == 0
    with pytest.raises(
        InvalidInputError, match="`seed` must be an integer of at least 0, received"
    ):
        check_integer("seed", -1, minimum=0)


@pytest.mark.parametrize("value", [0, 0.5, np.float32(0.5), np.int32(0)])
def test_a_number_within_its_bounds_is_returned_as_pythons(value):
    number = check_number("dropout", value, minimum=0, below=1)
    assert number == value
    assert type(number) in (int, float)


@pytest.mark.parametrize("value", [1, -0.1, math.nan, math.inf, "0.5", None, False, [0.5]])
def test_what_is_no_such_number_is_refused_by_the_arguments_name(value):
    expected = "`dropout` must be a finite number of at least 0 and below 1, received"
    with pytest.raises(InvalidInputError, match=expected):
        check_number("dropout", value, minimum=0, below=1)


def test_bounds_that_are_not_given_are_not_named():
    with pytest.raises(InvalidInputError, match="`scale` must be a finite number above 0, rec"):
        check_number("scale", 0.0, above=0)
    with pytest.raises(InvalidInputError, match="`bias` must be a finite number, received"):
        check_number("bias", math.inf)


@pytest.mark.parametrize("value", [True, False, np.True_])
def test_a_boolean_is_returned_as_pythons(value):
    assert check_boolean("use_bias", value) is bool(value)


@pytest.mark.parametrize("value", ["no", None, 1, 0.0, math.nan, [True]])
def test_what_is_neither_true_nor_false_is_refused(value):
    with pytest.raises(InvalidInputError, match="`use_bias` must be True or False, received"):
        check_boolean("use_bias", value)


def test_a_path_is_returned_as_a_string():
    assert check_path("file", Path("a") / "b") == str(Path("a") / "b")
    assert check_path("file", "c") == "c"


@pytest.mark.parametrize("value", ["", 3, None, b""])
def test_what_is_no_path_is_refused(value):
    with pytest.raises(InvalidInputError, match="`file` must be a path, received"):
        check_path("file", value)


def test_the_path_of_a_file_is_not_that_of_a_folder(tmp_path):
    assert check_file_path("file", tmp_path / "new") == str(tmp_path / "new")
    with pytest.raises(InvalidInputError, match="must be the path of a file, and"):
        check_file_path("file", tmp_path)
    with pytest.raises(InvalidInputError, match="`file` must be a path"):
        check_file_path("file", "")


@pytest.mark.parametrize("source", ["layers.py", Path("layers.py")])
def test_sources_are_a_list_or_one_by_itself(source):
    assert check_sources("custom_objects_from", source) == ("layers.py",)
    assert check_sources("custom_objects_from", [source, "my.layers"]) == ("layers.py", "my.layers")
    assert check_sources("custom_objects_from", ()) == ()


@pytest.mark.parametrize("value", [5, None, "", [""], [5], {"layers.py": 1}])
def test_what_names_no_sources_is_refused(value):
    with pytest.raises(InvalidInputError, match=r"`custom_objects_from` must be a list.*received"):
        check_sources("custom_objects_from", value)
