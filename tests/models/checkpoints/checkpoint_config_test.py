from pathlib import Path

import pytest

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.models.checkpoints.checkpoint_config import (
    GENERIC_KEYS,
    check_keys,
    read_block_shape,
    read_weights_name,
)
from tests.oracles.release_folders import V3_CONFIG, V4_CONFIG


def test_known_and_generic_keys_pass():
    check_keys({"model_type": "bert", "hidden_size": 8, "_name_or_path": "x"}, ["hidden_size"])


def test_all_unknown_keys_are_named_with_their_values():
    with pytest.raises(
        InvalidInputError, match=r"'hiden_size': 8, 'window': 3\. Known keys: hidden_"
    ):
        check_keys({"window": 3, "hiden_size": 8, "dtype": "float32"}, ["hidden_size"])


def test_a_key_without_a_value_says_nothing():
    check_keys({"sliding_window": None}, [])


def test_no_key_that_changes_what_is_computed_is_generic():
    assert not {"hidden_size", "tie_word_embeddings", "rope_scaling"} & GENERIC_KEYS


def read(**quantization):
    return read_block_shape(Path("folder"), {"quantization_config": quantization})


@pytest.mark.parametrize("config", [V3_CONFIG, V4_CONFIG, {}, {"quantization_config": None}])
def test_blocks_are_those_of_the_releases_where_none_are_named(config):
    assert read_block_shape(Path("folder"), config) == (128, 128)


def test_other_blocks_are_taken_as_they_are_named():
    assert read(quant_method="fp8", weight_block_size=[1, 32]) == (1, 32)
    assert read(quant_method="fp8", weight_block_size=None) == (128, 128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "gptq"}, "quantized by 'gptq' .`quant_method`.; expected 'fp8', or no"),
        ({"quant_method": None}, "quantized by None"),
        ({"fmt": "e5m2"}, "quantized by 'e5m2' .`fmt`.; expected 'e4m3'"),
    ],
)
def test_another_quantization_is_told(changes, message):
    with pytest.raises(NotSupportedError, match=message):
        read(**{"quant_method": "fp8", **changes})


@pytest.mark.parametrize("blocks", [128, [128], [128, 0], [128, "128"], [True, 1], [1, 2, 3]])
def test_blocks_that_are_none_are_told(blocks):
    with pytest.raises(InvalidInputError, match="must be two positive integers, as in"):
        read(quant_method="fp8", weight_block_size=blocks)


def test_a_quantization_that_is_no_object_is_told():
    with pytest.raises(InvalidInputError, match="must be an object, received 'fp8'"):
        read_block_shape(Path("folder"), {"quantization_config": "fp8"})


def test_the_file_of_the_weights_is_the_one_that_is_named():
    assert read_weights_name(Path("folder"), {"transformers_weights": None}) is None
    for name in ("a.safetensors", "a.safetensors.index.json"):
        assert read_weights_name(Path("folder"), {"transformers_weights": name}) == name


@pytest.mark.parametrize("name", [3, "a.bin", "../a.safetensors", "/a.safetensors"])
def test_a_file_of_weights_that_is_none_in_the_folder_is_told(name):
    with pytest.raises(InvalidInputError, match=r"`transformers_weights` .* the name of a file"):
        read_weights_name(Path("folder"), {"transformers_weights": name})
