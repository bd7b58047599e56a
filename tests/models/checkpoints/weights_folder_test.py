import json

import numpy as np
import pytest

from keras_deepseek.errors import CheckpointError
from keras_deepseek.models.checkpoints.weights_folder import WeightsFolder
from tests.oracles.preset_model import NAMES, encode_safetensors, make_model, make_tensors


@pytest.fixture(scope="module")
def model():
    return make_model()


def write_shards(folder, *shards, weight_map=None):
    """Writes shards and their index, and returns their paths."""
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))]
    for name, tensors in zip(names, shards, strict=True):
        (folder / name).write_bytes(encode_safetensors(tensors, NAMES))
    shard_of = {
        tensor_name: name
        for name, tensors in zip(names, shards, strict=True)
        for tensor_name in tensors
    }
    index = json.dumps({"metadata": {}, "weight_map": weight_map or shard_of})
    (folder / "model.safetensors.index.json").write_text(index)
    return [folder / name for name in names]


def halves(model):
    tensors = make_tensors(model)
    names = list(tensors)
    return [{name: tensors[name] for name in part} for part in (names[:4], names[4:])]


def write_one(folder, tensors):
    (folder / "model.safetensors").write_bytes(encode_safetensors(tensors, NAMES))


def read_error(folder, model, **arguments):
    with pytest.raises(CheckpointError, match="does not fit the model, and nothing was") as caught:
        WeightsFolder(folder).check(model.checkpoint_entries(), **arguments)
    return str(caught.value)


def test_one_file_and_shards_have_the_same_tensors(tmp_path, model):
    for name in ("one", "shards"):
        (tmp_path / name).mkdir()
    write_one(tmp_path / "one", make_tensors(model))
    write_shards(tmp_path / "shards", *halves(model))
    single_file, shards = WeightsFolder(tmp_path / "one"), WeightsFolder(tmp_path / "shards")
    assert single_file.tensors.keys() == shards.tensors.keys()
    for folder in (single_file, shards):
        folder.check(model.checkpoint_entries())


@pytest.mark.parametrize("are_shards_there", [True, False])
def test_one_file_is_read_though_an_older_index_is_beside_it(tmp_path, model, are_shards_there):
    shards = write_shards(tmp_path, *halves(model))
    write_one(tmp_path, make_tensors(model))
    for path in [] if are_shards_there else shards:
        path.unlink()
    folder = WeightsFolder(tmp_path)
    folder.check(model.checkpoint_entries())
    assert {tensor.path.name for tensor in folder.tensors.values()} == {"model.safetensors"}


def test_another_file_or_index_may_be_chosen(tmp_path, model):
    write_shards(tmp_path, *halves(model))
    write_one(tmp_path, {})
    WeightsFolder(tmp_path, "model.safetensors.index.json").check(model.checkpoint_entries())
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert not WeightsFolder(tmp_path, "other.safetensors").tensors
    with pytest.raises(CheckpointError, match=r"has no 'more\.safetensors', .*`transformers_weig"):
        WeightsFolder(tmp_path, "more.safetensors")


def test_all_that_is_wrong_is_in_one_error(tmp_path, model):
    tensors = make_tensors(model)
    del tensors["up.weight"], tensors["experts.1.weight"]
    tensors |= {"other.weight": np.zeros(2), "head.weight": np.zeros((3, 4), "float32")}
    tensors["order"] = tensors["order"].astype("float32")
    write_one(tmp_path, tensors)
    message = read_error(tmp_path, model)
    assert "missing: 'experts.1.weight', 'up.weight'." in message
    assert "unexpected: 'other.weight'." in message
    assert "'head.weight' has shape (3, 4), expected (40, 6)" in message
    assert "'order' has dtype F32, expected int32" in message


def test_names_may_be_passed_over(tmp_path, model):
    write_one(tmp_path, {**make_tensors(model), "layers.0.inv_freq": np.zeros(2)})
    WeightsFolder(tmp_path).check(model.checkpoint_entries(), ["*.inv_freq"])
    assert "'layers.0.inv_freq'" in read_error(tmp_path, model)


def test_empty_tensors_are_passed_over_unless_they_are_of_the_model(tmp_path, model):
    tensors = {**make_tensors(model), "shared.weight": np.zeros((0, 6), "float32")}
    write_one(tmp_path, tensors)
    WeightsFolder(tmp_path).check(model.checkpoint_entries())
    write_one(tmp_path, {**tensors, "head.weight": np.zeros((0, 6), "float32")})
    assert "'head.weight' has shape (0, 6), expected (40, 6)" in read_error(tmp_path, model)


def test_of_many_names_some_are_told(tmp_path, model):
    write_one(tmp_path, {f"t{number:02}": np.zeros(1) for number in range(30)})
    assert "'t09' and 20 more." in read_error(tmp_path, model)


def test_torn_and_missing_shards_are_told_with_what_is_wrong_beside(tmp_path, model):
    first, second = write_shards(tmp_path, *halves(model))
    first.write_bytes(first.read_bytes()[:-1])
    message = read_error(tmp_path, model)
    assert "-00000-of-00002.safetensors' is damaged" in message
    assert "missing:" not in message  # The index knows what is in it.
    second.unlink()
    assert "The shard 'model-00001-of-00002.safetensors' of the index is missing." in read_error(
        tmp_path, model
    )


def test_of_one_torn_file_nothing_is_said_to_be_missing(tmp_path, model):
    write_one(tmp_path, make_tensors(model))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    message = read_error(tmp_path, model)
    assert "is damaged" in message
    assert "missing" not in message


def test_a_shard_without_what_its_index_says_leaves_it_missing(tmp_path, model):
    first, second = halves(model)
    weight_map = dict.fromkeys([*first, *second], "model-00000-of-00002.safetensors")
    write_shards(tmp_path, first, second, weight_map=weight_map)
    assert f"missing: {sorted(second)[0]!r}" in read_error(tmp_path, model)


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        "3",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../model.safetensors"}}',
        '{"weight_map": {"a": "/model.safetensors"}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": ".."}}',
    ],
)
def test_an_index_that_is_none_is_told(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="is not an index of shards"):
        WeightsFolder(tmp_path)


def test_a_folder_of_another_form_is_told_with_what_it_has(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"It has pytorch_model\.bin\. Expected a folder of"):
        WeightsFolder(tmp_path)
    with pytest.raises(CheckpointError, match=r"has neither 'model\.safetensors' nor"):
        WeightsFolder(tmp_path / "missing")
