import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import DeepSeekV3Config, DeepSeekV4Config


@pytest.mark.parametrize("config_class", [DeepSeekV3Config, DeepSeekV4Config])
@pytest.mark.parametrize(
    "overrides",
    [
        {"end_token_id": "x"},
        {"end_token_id": -1},
        {"end_token_id": [1, "a"]},
        {"end_token_id": [1.0]},
        {"start_token_id": "a"},
        {"start_token_id": [1]},
        {"pad_token_id": -1},
    ],
)
def test_what_is_no_token_is_refused(config_class, overrides):
    (name,) = overrides
    with pytest.raises(InvalidInputError, match=f"`{name}` must be an integer of at least 0"):
        config_class.from_preset("tiny", **overrides)


@pytest.mark.parametrize("config_class", [DeepSeekV3Config, DeepSeekV4Config])
@pytest.mark.parametrize(
    ("end_token_id", "expected"), [(7, 7), (None, None), ([3, np.int64(5)], (3, 5)), ((), ())]
)
def test_several_tokens_may_end_a_text(config_class, end_token_id, expected):
    assert config_class.from_preset("tiny", end_token_id=end_token_id).end_token_id == expected
