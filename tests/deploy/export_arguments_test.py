import os
from pathlib import Path

import numpy as np
import pytest

from keras_deepseek.artifacts.errors import BundleError, InvalidInputError
from keras_deepseek.deploy import Exporter
from keras_deepseek.deploy.export_arguments import (
    check_artifact_path,
    check_model_name,
    check_samples,
)


@pytest.mark.parametrize("name", ["digits", "my model", "v1.2", "..."])
def test_a_name_is_one_part_of_a_path(name):
    assert check_model_name(name) == name


@pytest.mark.parametrize("name", [5, "", " ", ".", "..", "../x", "a/b", "a\\b", "a\nb", True])
def test_another_name_is_refused(name, dense):
    with pytest.raises(InvalidInputError, match="`name` must be a text without slashes"):
        Exporter(dense, "onnx", name=name)


@pytest.mark.parametrize("samples", [5, "rows", np.zeros((3, 4)), {"a": 1}, iter([])])
def test_samples_are_a_list_of_batches(samples, dense):
    with pytest.raises(InvalidInputError, match=r"`samples` must be a list.*received"):
        Exporter(dense, "onnx", samples=samples)


def test_samples_may_be_a_tuple_and_not_empty():
    assert check_samples((1,)) == (1,)
    with pytest.raises(InvalidInputError, match="`samples` is empty"):
        check_samples([])


def test_a_place_may_be_missing_and_its_folder_too(tmp_path):
    (tmp_path / "file").touch()
    for name in ("here", "a/b", "file", "file/under"):
        assert check_artifact_path(os.fspath(tmp_path / name)) == tmp_path / name


@pytest.mark.parametrize("path", [None, 5, "", []])
@pytest.mark.parametrize("method", ["export", "check", "load"])
def test_what_is_no_path_is_refused(dense, method, path):
    exporter = Exporter(dense, "onnx", verbose=False)
    with pytest.raises(InvalidInputError, match="`path` must be a path, received"):
        getattr(exporter, method)(path)


@pytest.mark.parametrize(
    ("name", "reason"), [("x" * 300, "too long"), ("x" * 250, "too long"), ("a\0b", "null")]
)
def test_a_place_that_the_system_has_not_is_refused(dense, tmp_path, name, reason):
    with pytest.raises(BundleError, match=rf"(?s)can .*{reason}.*Name another place"):
        Exporter(dense, "onnx", verbose=False).export(Path(tmp_path, name))
    assert not any(tmp_path.iterdir())
