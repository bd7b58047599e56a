from keras_deepseek.layers import DeepSeekSparseAttention
from keras_deepseek.models import DeepSeekV32Backbone
from tests.oracles import language_models


def test_it_is_made_of_its_config_and_comes_back():
    assert DeepSeekV32Backbone.attention_class is DeepSeekSparseAttention
    language_models.check_backbone(DeepSeekV32Backbone)
