import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import DeepSeekV32Config


@pytest.mark.parametrize(
    ("types", "sparse"),
    [
        (None, [False, True, True]),
        (("sparse", "dense", "sparse"), [True, False, True]),
        (("dense", "dense", "dense"), [False, False, False]),
    ],
)
def test_layers_have_experts_by_number_or_by_name(types, sparse):
    config = DeepSeekV32Config.from_preset("tiny", num_layers=3, feed_forward_types=types)
    assert [config.has_experts(index) for index in range(3)] == sparse
    values = config.to_checkpoint_config()
    assert DeepSeekV32Config.from_checkpoint_config(values) == config


def test_layers_of_another_kind_are_refused():
    values = DeepSeekV32Config.from_preset("tiny").to_checkpoint_config()
    kinds = ["indexed_attention", "sliding_attention"]
    with pytest.raises(InvalidInputError, match="received 'sliding_attention'"):
        DeepSeekV32Config.from_checkpoint_config({**values, "layer_types": kinds})
    kinds[1] = kinds[0]
    DeepSeekV32Config.from_checkpoint_config({**values, "layer_types": kinds})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"feed_forward_types": ("dense",)}, "for each of the 2 layers"),
        ({"feed_forward_types": ("dense", "moe")}, "'dense' or 'sparse'"),
        ({"index_top_k": 0}, "`index_top_k` must be a positive integer"),
        ({"indexer_loss_weight": 0.0}, "`indexer_loss_weight`"),
    ],
)
def test_a_value_out_of_range_is_refused(overrides, message):
    with pytest.raises(InvalidInputError, match=message):
        DeepSeekV32Config.from_preset("tiny", **overrides)
