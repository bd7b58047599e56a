import keras
import pytest

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.models.config_model import read_policy


def test_a_policy_is_one_of_keras_that_does_not_quantize():
    assert read_policy(None) == keras.config.dtype_policy()
    assert read_policy("mixed_bfloat16").compute_dtype == "bfloat16"
    with pytest.raises(InvalidInputError, match="must be a dtype policy"):
        read_policy("half")
    with pytest.raises(NotSupportedError, match="int8_from_float32"):
        read_policy("int8_from_float32")
