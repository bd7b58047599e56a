import ml_dtypes
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.errors import CheckpointError, InvalidInputError
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.checkpoints.weights_folder import WeightsFolder
from keras_deepseek.models.checkpoints.weights_reader import read_weights
from tests.models.checkpoints.weights_folder_test import halves, write_one, write_shards
from tests.oracles.preset_model import make_model, make_tensors, read_weights_of


def assert_equal(received, expected, tolerance=0.0):
    for (path, array), other in zip(received.items(), expected.values(), strict=True):
        assert np.allclose(array, other, rtol=tolerance, atol=tolerance), path


def test_a_model_is_filled_from_one_file_and_from_shards(tmp_path):
    source = make_model(1)
    for write in (
        lambda: write_one(tmp_path, make_tensors(source)),
        lambda: write_shards(tmp_path, *halves(source)),
    ):
        write()
        model = make_model(2)
        read_weights(WeightsFolder(tmp_path), model.checkpoint_entries())
        assert_equal(read_weights_of(model), read_weights_of(source))


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "float64"])
def test_numbers_of_every_width_are_read(tmp_path, dtype):
    source = make_model(1)
    tensors = make_tensors(source)
    write_one(
        tmp_path,
        {
            name: array if array.dtype.kind == "i" else array.astype(dtype)
            for name, array in tensors.items()
        },
    )
    model = make_model(2)
    read_weights(WeightsFolder(tmp_path), model.checkpoint_entries())
    assert_equal(read_weights_of(model), read_weights_of(source), 0.01)


def scale(matrix, block_shape):
    """Returns a matrix in float8 by blocks with their scales, as DeepSeek's releases have it."""
    rows, columns = (
        -(-size // block) for size, block in zip(matrix.shape, block_shape, strict=True)
    )
    scales = np.empty((rows, columns), "float32")
    values = np.empty(matrix.shape, ml_dtypes.float8_e4m3fn)
    for row, column in np.ndindex(rows, columns):
        block_slices = tuple(
            slice(number * block, (number + 1) * block)
            for number, block in zip((row, column), block_shape, strict=True)
        )
        scales[row, column] = np.abs(matrix[block_slices]).max() / 448.0
        values[block_slices] = (matrix[block_slices] / scales[row, column]).astype(
            ml_dtypes.float8_e4m3fn
        )
    return values, scales


def test_float8_is_read_by_its_scales(tmp_path):
    source = make_model(1)
    tensors = make_tensors(source)
    for name in (
        "up.weight",
        "down.weight",
        "gate_value.weight",
        "experts.0.weight",
        "experts.2.weight",
    ):
        tensors[name], tensors[f"{name}_scale_inv"] = scale(tensors[name], (4, 3))
    write_one(tmp_path, tensors)
    model = make_model(2)
    read_weights(WeightsFolder(tmp_path), model.checkpoint_entries(), block_shape=(4, 3))
    for (path, array), expected in zip(
        read_weights_of(model).items(), read_weights_of(source).values(), strict=True
    ):
        assert np.allclose(array, expected, atol=2**-4 * np.abs(expected).max()), path
    assert_equal(
        {"embedding": read_weights_of(model)["token_embedding/embeddings"]},
        {"embedding": read_weights_of(source)["token_embedding/embeddings"]},
    )


def test_scales_that_do_not_fit_or_are_missing_are_told(tmp_path):
    source = make_model(1)
    tensors = make_tensors(source)
    tensors["up.weight"], scales = scale(tensors["up.weight"], (4, 3))
    tensors["down.weight"], _ = scale(tensors["down.weight"], (4, 3))
    write_one(tmp_path, {**tensors, "up.weight_scale_inv": scales, "head.weight_scale_inv": scales})
    with pytest.raises(CheckpointError) as caught:
        read_weights(WeightsFolder(tmp_path), source.checkpoint_entries())
    assert "missing: 'down.weight_scale_inv'." in str(caught.value)
    assert "unexpected: 'head.weight_scale_inv'." in str(caught.value)
    assert "'up.weight_scale_inv' has shape (2, 2), expected (1, 1)" in str(caught.value)


def test_nothing_is_loaded_where_one_tensor_does_not_fit(tmp_path):
    model = make_model(2)
    tensors = make_tensors(make_model(1))
    write_one(tmp_path, {**tensors, "head.weight": tensors["head.weight"][:-1]})
    old_weights = read_weights_of(model)
    with pytest.raises(
        CheckpointError, match=r"'head\.weight' has shape \(39, 6\), expected \(40, 6\)"
    ):
        read_weights(WeightsFolder(tmp_path), model.checkpoint_entries())
    assert_equal(read_weights_of(model), old_weights)


def test_a_map_that_makes_another_shape_is_named(tmp_path):
    model = make_model()
    entry = model.checkpoint_entries()[0]
    wrong = CheckpointEntry(entry.variables, entry.tensors, lambda arrays: [arrays[0].T], list)
    write_one(tmp_path, {"embed.weight": make_tensors(model)["embed.weight"]})
    with pytest.raises(
        InvalidInputError,
        match=r"The checkpoint map makes an array of shape \(6, 40\) from \('embed",
    ):
        read_weights(WeightsFolder(tmp_path), [wrong])


def test_the_memory_of_a_tensor_is_given_back_before_the_next(tmp_path, monkeypatch):
    model = make_model()
    write_one(tmp_path, make_tensors(model))
    events = []
    reader = "keras_deepseek.models.checkpoints.weights_reader"
    compute = backend.current().compute
    monkeypatch.setattr(
        f"{reader}.MappedFiles.release", lambda self, tensor: events.append("released")
    )
    monkeypatch.setattr(
        compute, "assign_array", lambda variable, source: events.append(variable.shape)
    )
    read_weights(WeightsFolder(tmp_path), model.checkpoint_entries()[:1], ignored_tensors=["*"])
    assert events == [(40, 6), "released"]
