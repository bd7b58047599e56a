import os

import numpy as np
import pytest

from keras_deepseek.artifacts.export_arguments import (
    bind_rows,
    check_artifact_path,
    check_classes,
    check_format,
    check_model_name,
    check_opset,
    check_samples,
    check_target_file,
)
from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.errors import BundleError, ExportError, InvalidInputError


@pytest.mark.parametrize("name", ["digits", "my model", "v1.2", "..."])
def test_a_name_is_one_part_of_a_path(name):
    assert check_model_name(name) == name


@pytest.mark.parametrize("name", [5, "", " ", ".", "..", "../x", "a/b", "a\\b", "a\nb", True])
def test_another_name_is_refused(name):
    with pytest.raises(InvalidInputError, match="`name` must be a text without slashes"):
        check_model_name(name)


@pytest.mark.parametrize("samples", [5, "rows", np.zeros((3, 4)), {"a": 1}, iter([])])
def test_samples_are_a_list_of_batches(samples):
    with pytest.raises(InvalidInputError, match=r"`samples` must be a list.*received"):
        check_samples(samples)


def test_samples_may_be_a_tuple_and_not_empty():
    assert check_samples((1,)) == (1,)
    with pytest.raises(InvalidInputError, match="`samples` is empty"):
        check_samples([])


def test_a_place_may_be_missing_and_its_folder_too(tmp_path):
    (tmp_path / "file").touch()
    for name in ("here", "a/b", "file", "file/under"):
        assert check_artifact_path(os.fspath(tmp_path / name)) == tmp_path / name


def test_a_place_that_the_system_has_not_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"(?s)can .*too long.*Name another place"):
        check_artifact_path(tmp_path / ("x" * 300))
    with pytest.raises(InvalidInputError, match="`path` must be a path, received"):
        check_artifact_path(tmp_path / "a\0b")


def test_a_file_is_not_written_over_a_folder(tmp_path):
    check_target_file(tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="is a folder; expected a path"):
        check_target_file(tmp_path)


@pytest.mark.parametrize("name", ["onxx", None, 5, []])
def test_another_format_than_there_is_has_its_nearest_name(name):
    check_format("custom", ["onnx"])
    check_format("onnx", ["onnx"])
    with pytest.raises(InvalidInputError, match=r"Unknown export format .*Known: custom, onnx"):
        check_format(name, ["onnx"])


@pytest.mark.parametrize("opset", [17, 26, "18", 18.0, True, None])
def test_an_operator_set_that_is_not_written_is_refused(opset):
    assert [check_opset(version) for version in (18, 25)] == [18, 25]
    with pytest.raises(InvalidInputError, match="from 18 to 25; received"):
        check_opset(opset)


def test_classes_are_a_list_of_names_once_each():
    assert check_classes(["a", "b"]) == ("a", "b")
    assert check_classes(True) is True
    with pytest.raises(InvalidInputError, match="names a class twice"):
        check_classes(["a", "a"])
    for classes in ("cat", [], [1], None, np.array(["a"])):
        with pytest.raises(InvalidInputError, match="a boolean, or a list"):
            check_classes(classes)


@pytest.mark.parametrize(
    ("left_shape", "right_shape", "match"),
    [
        ((3, 2), (4, 2), r"`samples\[1\]`: Inputs differ in batch size: .*3.*4"),
        (
            (0, 2),
            (0, 2),
            r"`samples\[1\]` has no rows for input 'left', 'right'; expected at least",
        ),
        ((3, 1), (3, 2), r"`samples\[1\]`: Input 'left': received shape \(3, 1\)"),
    ],
)
def test_rows_that_do_not_fit_are_named_by_where_they_were_given(left_shape, right_shape, match):
    specs = tuple(TensorSpec(name, (None, 2), "float32") for name in ("left", "right"))
    signature = Signature(specs, ())
    assert set(bind_rows("a", signature, [np.ones((3, 2))] * 2)) == {"left", "right"}
    with pytest.raises(InvalidInputError, match=match):
        bind_rows("samples[1]", signature, [np.zeros(left_shape), np.zeros(right_shape)])
