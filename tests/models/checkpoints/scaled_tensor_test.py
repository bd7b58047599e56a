import math
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from keras_deepseek.errors import CheckpointError
from keras_deepseek.models.checkpoints.safetensors_file import MappedFiles, StoredTensor
from keras_deepseek.models.checkpoints.scaled_tensor import (
    ScaledTensor,
    list_scale_names,
    takes_scales,
)
from keras_deepseek.models.checkpoints.weights_folder import WeightsFolder
from keras_deepseek.models.checkpoints.weights_reader import read_weights
from tests.models.checkpoints.weights_folder_test import write_one
from tests.oracles import release_folders, scaled_weights
from tests.oracles.preset_model import make_model, make_tensors, read_weights_of

PATH = Path("model.safetensors")


def stored(dtype, *shape):
    return StoredTensor(PATH, dtype, shape, 0)


def compare(tensor, scales, shape, block_shape=(128, 128)):
    return list(ScaledTensor(tensor, "w.scale", scales, block_shape).compare("w.weight", shape))


def test_the_names_of_the_scales():
    assert list_scale_names("a.weight") == ("a.weight_scale_inv", "a.scale")
    assert list_scale_names("a.gate_up_proj") == ("a.gate_up_proj_scale_inv",)


def test_bytes_for_integers_are_integers():
    assert takes_scales("I8", "float32")
    assert takes_scales("F8_E4M3", "bfloat16")
    assert not takes_scales("I8", "int32")
    assert not takes_scales("U8", "float32")
    assert not takes_scales("F8_E8M0", "float32")


def test_what_fits_is_not_spoken_of():
    assert not compare(stored("F8_E4M3", 300, 64), stored("F32", 3, 1), (300, 64))
    assert not compare(stored("I8", 3, 32), stored("F8_E8M0", 3, 2), (3, 64))
    assert not compare(stored("I8", 3, 32), None, (3, 64))


BLOCKS_TOLD = "(`weight_block_size` of config.json)"


@pytest.mark.parametrize(
    ("tensor", "scales", "expected"),
    [
        (
            stored("F8_E4M3", 8, 6),
            stored("F32", 1, 1),
            ["'w.weight' has shape (8, 6), expected (8, 12)"],
        ),
        (
            stored("F8_E4M3", 8, 12),
            stored("F32", 2, 1),
            [f"'w.scale' has shape (2, 1), expected (1, 1) for blocks of 128 by 128 {BLOCKS_TOLD}"],
        ),
        (
            stored("I8", 8, 12),
            stored("F8_E8M0", 1, 1),
            [
                "'w.weight' has shape (8, 12), expected (8, 6), two numbers a byte, for (8, 12)",
                "'w.scale' has shape (1, 1), expected (8, 1) for blocks of 1 by 32",
            ],
        ),
        (
            stored("I8", 8, 6),
            stored("I32", 8, 1),
            ["'w.scale' has dtype I32, expected F8_E8M0 or F32 or BF16 or F16"],
        ),
    ],
)
def test_what_does_not_fit_is_told(tensor, scales, expected):
    assert compare(tensor, scales, (8, 12)) == expected


def test_a_vector_has_no_blocks():
    (message,) = compare(stored("F8_E4M3", 8), None, (8,))
    assert message == "'w.weight' has dtype F8_E4M3, which only matrices may have"


def write_packed(folder, model, *names, suffix=".scale"):
    """Writes a model with tensors in float4, and returns what their numbers are."""
    rng, tensors, numbers = np.random.default_rng(0), make_tensors(model), {}
    for name in names:
        rows, columns = tensors[name].shape
        codes = rng.integers(0, 256, (rows, columns // 2)).astype("uint8")
        scales = rng.integers(125, 130, (rows, 1)).astype("uint8")
        tensors[name] = codes.view("int8")
        tensors[name.removesuffix(".weight") + suffix] = scales.view(ml_dtypes.float8_e8m0fnu)
        numbers[name] = scaled_weights.multiply(
            scaled_weights.decode_float4(codes), scaled_weights.decode_scales(scales), (1, 32)
        )
    write_one(folder, tensors)
    return numbers


@pytest.mark.parametrize("suffix", [".scale", ".weight_scale_inv"])
def test_float4_is_read_by_either_name_of_its_scales(tmp_path, suffix):
    model = make_model(2)
    numbers = write_packed(tmp_path, make_model(1), "head.weight", "up.weight", suffix=suffix)
    read_weights(WeightsFolder(tmp_path), model.checkpoint_entries())
    arrays = make_tensors(model)
    for name, expected in numbers.items():
        assert np.array_equal(arrays[name], expected), name


def test_missing_scales_are_called_as_the_others_are(tmp_path):
    model = make_model(2)
    write_packed(tmp_path, make_model(1), "head.weight", "up.weight")
    folder = WeightsFolder(tmp_path)
    del folder.tensors["up.scale"]
    old_weights = read_weights_of(model)
    with pytest.raises(CheckpointError, match=r"missing: 'up\.scale'\.$"):
        read_weights(folder, model.checkpoint_entries())
    assert all(
        np.array_equal(array, old_weights[path]) for path, array in read_weights_of(model).items()
    )


def test_a_tensor_and_its_scales_are_read_together(tmp_path):
    numbers = write_packed(tmp_path, make_model(1), "head.weight")["head.weight"]
    tensor = WeightsFolder(tmp_path).find_scaled("head.weight", "float32", (128, 128))
    assert [part.dtype for part in tensor.parts] == ["I8", "F8_E8M0"]
    with MappedFiles() as files:
        assert np.array_equal(tensor.read(files)[:], numbers)


V3_SIZES = {
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_attention_heads": 128,
    "num_hidden_layers": 61,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
V4_SIZES = {
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
    "head_dim": 512,
    "hidden_size": 4096,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 6,
    "num_attention_heads": 64,
    "num_hash_layers": 3,
    "num_hidden_layers": 43,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "q_lora_rank": 1024,
    "vocab_size": 129280,
}
BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "F8_E8M0": 1, "I8": 0.5, "I64": 8}


def count_and_weigh(tensors, scale_dtype):
    """The number of tensors, and their bytes, by dtype; those with scales among them."""
    count, size = Counter(), Counter()
    for _, dtype, shape, block in tensors:
        parts = {dtype: shape}
        if block is not None:
            parts[scale_dtype] = [
                -(-n // block_size) for n, block_size in zip(shape, block, strict=True)
            ]
        for part_dtype, extent in parts.items():
            count[part_dtype] += 1
            size[part_dtype] += math.prod(extent) * BYTES[part_dtype]
    return count, size


def test_the_folders_of_these_tests_are_listed_as_the_releases_are():
    """By the published indices and headers of DeepSeek-V3 and DeepSeek-V4-Flash."""
    sizes = {**release_folders.V3_CONFIG, **V3_SIZES}
    count, size = count_and_weigh(release_folders.list_v3(sizes), "F32")
    assert (count.total(), size.total()) == (91_991, 688_574_839_360)
    sizes = {**release_folders.V4_CONFIG, **V4_SIZES}
    count, size = count_and_weigh(release_folders.list_v4(sizes), "F8_E8M0")
    assert count == {
        "BF16": 433,
        "F32": 417,
        "F8_E4M3": 375,
        "F8_E8M0": 34_167,
        "I64": 3,
        "I8": 33_792,
    }
    assert size == {
        "BF16": 2_830_518_528,
        "F32": 144_672_072,
        "F8_E4M3": 6_023_020_544,
        "F8_E8M0": 8_858_737_664,
        "I64": 18_616_320,
        "I8": 141_733_920_768,
    }
