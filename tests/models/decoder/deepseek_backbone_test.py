import pytest

from keras_deepseek.layers import MultiHeadLatentAttention
from keras_deepseek.models.decoder.deepseek_models import DeepSeekBackbone
from keras_deepseek.models.deepseek_v3.config import DeepSeekV3Config


class SmallBackbone(DeepSeekBackbone):
    config_class = DeepSeekV3Config
    attention_class = MultiHeadLatentAttention


@pytest.mark.torch_alone
@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_it_has_the_blocks_of_its_config_under_one_policy(dtype):
    config = DeepSeekV3Config.from_preset("tiny", num_layers=3)
    backbone = SmallBackbone(config, dtype=dtype, name="body")
    assert [type(block.attention) for block in backbone.transformer_layers] == [
        MultiHeadLatentAttention
    ] * 3
    assert backbone.name == "body"
    policies = {layer.compute_dtype for layer in (backbone.token_embedding, backbone.final_norm)}
    assert policies == {dtype or "float32"}
