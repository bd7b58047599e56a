import pytest

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.models.checkpoints.checkpoint_config import GENERIC_KEYS, check_keys


def test_known_and_generic_keys_pass():
    check_keys({"model_type": "bert", "hidden_size": 8, "_name_or_path": "x"}, ["hidden_size"])


def test_all_unknown_keys_are_named_with_their_values():
    with pytest.raises(InvalidInputError, match=r"'hiden_size': 8, 'window': 3\. Known: hidden_"):
        check_keys({"window": 3, "hiden_size": 8, "dtype": "float32"}, ["hidden_size"])


def test_a_key_without_a_value_says_nothing():
    check_keys({"sliding_window": None}, [])


def test_no_key_that_changes_what_is_computed_is_generic():
    assert not {"hidden_size", "tie_word_embeddings", "rope_scaling"} & GENERIC_KEYS
