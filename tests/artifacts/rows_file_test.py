from zipfile import ZipFile

import numpy as np
import pytest

from keras_deepseek.artifacts.rows_file import cut_batches, load_rows
from keras_deepseek.errors import InvalidInputError


def test_one_array_needs_no_name(tmp_path):
    np.savez(tmp_path / "rows.npz", np.ones((2, 3)))
    assert load_rows(tmp_path / "rows.npz").shape == (2, 3)
    np.save(tmp_path / "rows.npy", np.ones((2, 3)))
    assert load_rows(tmp_path / "rows.npy").shape == (2, 3)
    np.savez(tmp_path / "rows.npz", a=np.ones(1), b=np.zeros(1))
    assert sorted(load_rows(tmp_path / "rows.npz")) == ["a", "b"]


def test_an_archive_of_something_else_is_named(tmp_path):
    with ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(InvalidInputError, match=r"No arrays can be read from .*model\.keras"):
        load_rows(tmp_path / "model.keras")


@pytest.mark.parametrize("content", [b"", b"torn", b"PK\x03\x04", b"\x93NUMPY"])
def test_a_file_without_arrays_is_named(tmp_path, content):
    path = tmp_path / "rows.npz"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"No arrays can be read from .*rows\.npz"):
        load_rows(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match=r"No file at .*rows\.npz.*numpy\.savez"):
        load_rows(tmp_path / "rows.npz")


@pytest.mark.parametrize(
    ("arrays", "row_counts"),
    [
        ({"a": np.ones((3, 2)), "b": np.ones(4)}, "a: 3, b: 4"),
        ({"a": np.ones((0, 2))}, "a: 0"),
        ({"a": np.ones(())}, "a: None"),
        ({}, "none"),
    ],
)
def test_arrays_are_to_have_as_many_rows(tmp_path, arrays, row_counts):
    np.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(
        InvalidInputError, match=rf"rows\.npz' must have .* the rows are {row_counts}"
    ):
        load_rows(tmp_path / "rows.npz")


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1]), (5, [1, 3, 1]), (50, [1, 3, 4, 32, 10])])
def test_data_are_cut_into_batches_of_several_sizes(rows, sizes):
    arrays = {"x": np.arange(rows), "y": np.arange(2 * rows).reshape(rows, 2)}
    batches = cut_batches(arrays)
    assert [len(batch["x"]) for batch in batches] == sizes
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in batches]), array)
