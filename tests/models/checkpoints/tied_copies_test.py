from dataclasses import replace

import keras
import ml_dtypes
import numpy as np
import pytest

from keras_deepseek.errors import CheckpointError
from keras_deepseek.models.checkpoints import weights_reader
from keras_deepseek.models.checkpoints.checkpoint_entry import copied_entry
from keras_deepseek.models.checkpoints.weights_folder import WeightsFolder
from keras_deepseek.models.checkpoints.weights_reader import (
    check_copies,
    read_weights,
    use_present_copy,
)
from tests.models.checkpoints.weights_folder_test import read_error, write_one
from tests.models.checkpoints.weights_reader_test import assert_equal, scale
from tests.oracles.preset_model import make_model, make_tensors, read_weights_of

TABLE = np.arange(12.0).reshape(6, 2)


@pytest.fixture
def entry():
    return copied_entry(keras.Variable(TABLE), "table", copies=("head", "other_head"))


def check(entry, **tensors):
    check_copies([entry], set(tensors), lambda _, name: tensors[name])


def test_a_copy_stands_in_for_what_is_missing(entry):
    assert use_present_copy(entry, {"table", "head"}) is entry
    assert use_present_copy(entry, {"more"}) is entry
    present = use_present_copy(entry, {"head", "other_head", "more"})
    assert (present.tensors, present.copies) == (("head",), ("other_head",))


@pytest.mark.parametrize("piece", [1, 40, 2**24])
def test_a_copy_has_the_same_numbers_in_any_dtype(entry, monkeypatch, piece):
    monkeypatch.setattr(weights_reader, "_PIECE_BYTES", piece)
    check(entry, table=TABLE)
    check(entry, table=TABLE, head=TABLE.astype(ml_dtypes.bfloat16))
    other = np.where(TABLE.max() == TABLE, 0.5, TABLE)
    with pytest.raises(CheckpointError, match=r"'other_head' and 'table' .*tie_word_embeddings=F"):
        check(entry, table=TABLE, head=TABLE, other_head=other)


def with_copy(model):
    first, *other_entries = model.checkpoint_entries()
    return [replace(first, copies=("logits.weight",)), *other_entries]


def test_a_folder_may_have_both_or_either(tmp_path):
    source = make_model(1)
    tensors = make_tensors(source)
    copy = {"logits.weight": tensors["embed.weight"]}
    without_table = {name: array for name, array in tensors.items() if name != "embed.weight"}
    for written in ({**tensors, **copy}, {**without_table, **copy}):
        write_one(tmp_path, written)
        model = make_model(2)
        read_weights(WeightsFolder(tmp_path), with_copy(model))
        assert_equal(read_weights_of(model), read_weights_of(source))


def test_a_copy_that_differs_is_told_before_a_variable_changes(tmp_path):
    tensors = make_tensors(make_model(1))
    write_one(tmp_path, {**tensors, "logits.weight": tensors["embed.weight"] * 3})
    model = make_model(2)
    old_weights = read_weights_of(model)
    with pytest.raises(
        CheckpointError, match=r"'logits\.weight' and 'embed\.weight' must be equal"
    ):
        read_weights(WeightsFolder(tmp_path), with_copy(model))
    assert_equal(read_weights_of(model), old_weights)


def test_a_copy_of_another_shape_is_told_with_what_is_wrong_beside(tmp_path):
    model = make_model(1)
    tensors = make_tensors(model)
    write_one(tmp_path, {**tensors, "logits.weight": np.zeros((3, 6)), "more": np.zeros(1)})
    with pytest.raises(
        CheckpointError, match=r"'more'.*'logits\.weight' has shape \(3, 6\), expected"
    ):
        read_weights(WeightsFolder(tmp_path), with_copy(model))
    assert "unexpected: 'logits.weight', 'more'" in read_error(tmp_path, model)


def test_copies_in_float8_are_compared_by_their_scales(tmp_path):
    model = make_model(1)
    tensors = make_tensors(model)
    tensors["embed.weight"], scales = scale(tensors["embed.weight"], (128, 128))
    tensors["embed.weight_scale_inv"] = scales
    copy = {"logits.weight": tensors["embed.weight"], "logits.weight_scale_inv": scales}
    write_one(tmp_path, {**tensors, **copy})
    read_weights(WeightsFolder(tmp_path), with_copy(model))
    write_one(tmp_path, {**tensors, **copy, "logits.weight_scale_inv": 2 * scales})
    with pytest.raises(CheckpointError, match="must be equal"):
        read_weights(WeightsFolder(tmp_path), with_copy(model))
