import fnmatch

import pytest

from keras_deepseek.layers import DeepSeekSparseAttention
from keras_deepseek.models import (
    DeepSeekV2CausalLM,
    DeepSeekV3CausalLM,
    DeepSeekV4CausalLM,
    DeepSeekV32CausalLM,
)
from keras_deepseek.models.decoder.deepseek_models import DeepSeekCausalLM

FAMILIES = (DeepSeekV2CausalLM, DeepSeekV3CausalLM, DeepSeekV32CausalLM, DeepSeekV4CausalLM)


@pytest.mark.parametrize("task", FAMILIES)
def test_a_family_names_classes_that_belong_together(task):
    assert issubclass(task, DeepSeekCausalLM)
    assert task.backbone_class.config_class is task.config_class
    architecture = task.config_class.from_preset("tiny").to_checkpoint_config()["architectures"]
    assert list(task.architectures) == architecture


def test_modules_that_predict_further_tokens_have_the_attention_of_the_backbone():
    config = DeepSeekV32CausalLM.config_class.from_preset("tiny", num_prediction_layers=1)
    model = DeepSeekV32CausalLM(config)
    (block,) = model.multi_token_prediction.blocks
    assert isinstance(block.attention, DeepSeekSparseAttention)
    assert model.config is config
    assert not any(
        fnmatch.fnmatchcase(name, pattern)
        for entry in model.checkpoint_entries()
        for name in entry.tensors
        for pattern in model.ignored_tensors
    )
