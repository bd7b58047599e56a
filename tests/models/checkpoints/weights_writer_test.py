import json

import keras
import numpy as np
import pytest

from keras_deepseek.models.checkpoints.safetensors_file import MappedFiles
from keras_deepseek.models.checkpoints.weights_folder import WeightsFolder
from keras_deepseek.models.checkpoints.weights_writer import send_weights, write_weights
from tests.oracles.preset_model import make_model, make_tensors


def write(folder, model, **arguments):
    arguments = {"max_shard_bytes": 10**9, **arguments}
    write_weights(
        folder, model.checkpoint_entries(), read_value=lambda variable: variable.value, **arguments
    )
    weights = WeightsFolder(folder)
    assert not weights.damages
    with MappedFiles() as files:
        return {name: np.array(files.read(tensor)) for name, tensor in weights.tensors.items()}


def test_every_tensor_is_written_as_its_entry_makes_it(tmp_path):
    model = make_model()
    written = write(tmp_path, model)
    expected = make_tensors(model)
    assert written.keys() == expected.keys()
    for name, array in expected.items():
        assert written[name].dtype == array.dtype
        assert np.array_equal(written[name], array), name


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_what_is_handed_over_comes_in_the_order_of_what_is_written(tmp_path, dtype):
    model, read = make_model(), []
    arguments = {
        "dtype": dtype,
        "float32_tensors": ["norm.*"],
        "read_value": lambda variable: read.append(variable.path) or variable.value,
    }
    write_weights(tmp_path, model.checkpoint_entries(), max_shard_bytes=10**9, **arguments)
    written = read.copy()
    read.clear()
    send_weights(model.checkpoint_entries(), **arguments)
    assert read == written
    assert len(read) == len(model.weights)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_numbers_are_written_in_another_dtype_and_integers_stay(tmp_path, dtype):
    model = make_model()
    written = write(tmp_path, model, dtype=dtype, float32_tensors=["norm.*"])
    kinds = {name: array.dtype.name for name, array in written.items()}
    assert (kinds.pop("norm.weight"), kinds.pop("norm.bias")) == ("float32", "float32")
    assert kinds.pop("order") == "int32"
    assert set(kinds.values()) == {dtype}
    expected = make_tensors(model)
    for name, array in written.items():
        assert np.array_equal(array, expected[name].astype(array.dtype)), name


def test_a_model_in_half_precision_is_written_in_it(tmp_path):
    from tests.oracles.preset_model import SmallConfig, SmallModel

    model = SmallModel(SmallConfig(), dtype="bfloat16")
    written = write(tmp_path, model)
    assert written["head.weight"].dtype.name == "bfloat16"
    kernel = keras.ops.convert_to_numpy(model.small_layers["head"].kernel).astype("float32")
    assert np.array_equal(written["head.weight"].astype("float32").T, kernel)


def test_what_is_larger_than_a_shard_is_divided_and_each_tensor_is_whole(tmp_path):
    model = make_model()
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    single, sharded = (
        write(tmp_path / "one", model),
        write(tmp_path / "many", model, max_shard_bytes=500),
    )
    assert all(np.array_equal(single[name], sharded[name]) for name in single)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in single.values())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert len(shards) > 3
    by_shard = [[n for n, s in index["weight_map"].items() if s == shard] for shard in shards]
    sizes = [sum(single[name].nbytes for name in names) for names in by_shard]
    assert all(size <= 500 or len(names) == 1 for size, names in zip(sizes, by_shard, strict=True))
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()


def test_every_tensor_is_aligned(tmp_path):
    write(tmp_path, make_model(), dtype="bfloat16", float32_tensors=["norm.*"])
    for tensor in WeightsFolder(tmp_path).tensors.values():
        assert tensor.begin % (4 if tensor.dtype in ("F32", "I32") else 2) == 0


def test_large_tensors_are_written_by_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_deepseek.backend.data.array_pieces.PIECE_BYTES", 64)
    model = make_model()
    written = write(tmp_path, model)
    assert all(
        np.array_equal(written[name], expected) for name, expected in make_tensors(model).items()
    )


def test_the_value_is_what_the_function_reads(tmp_path):
    model = make_model()
    write_weights(
        tmp_path,
        model.checkpoint_entries()[:1],
        read_value=lambda variable: variable.value * 2.0,
        max_shard_bytes=10**9,
    )
    tensor = WeightsFolder(tmp_path).tensors["embed.weight"]
    with MappedFiles() as files:
        assert np.array_equal(files.read(tensor), 2.0 * make_tensors(model)["embed.weight"])
