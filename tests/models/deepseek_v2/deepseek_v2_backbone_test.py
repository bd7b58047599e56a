from keras_deepseek.layers import MultiHeadLatentAttention
from keras_deepseek.models import DeepSeekV2Backbone
from tests.oracles import language_models


def test_it_is_made_of_its_config_and_comes_back():
    assert DeepSeekV2Backbone.attention_class is MultiHeadLatentAttention
    language_models.check_backbone(DeepSeekV2Backbone)
