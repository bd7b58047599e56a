import keras
import numpy as np

from keras_deepseek.layers import DeepSeekMoE, MultiHeadLatentAttention, SwiGLU
from keras_deepseek.models import DeepSeekV3Backbone, DeepSeekV3Config
from keras_deepseek.models.decoder.deepseek_models import (
    make_backbone_layers,
    make_decoder_block,
    make_multi_token_prediction,
)

POLICY = keras.dtype_policies.get("float32")


def test_a_block_is_made_of_what_the_config_says():
    config = DeepSeekV3Config.from_preset(
        "tiny", epsilon=1e-3, routed_scale=2.5, num_shared_experts=2, balance_loss=0.5
    )
    dense, sparse = (
        make_decoder_block(config, MultiHeadLatentAttention, index, POLICY) for index in (0, 1)
    )
    assert isinstance(dense.feed_forward, SwiGLU)
    assert isinstance(sparse.feed_forward, DeepSeekMoE)
    router = sparse.feed_forward.router
    assert (router.routed_scale, router.balance_loss) == (2.5, 0.5)
    assert sparse.feed_forward.num_shared_experts == 2
    # DeepSeek's code gives the norms within attention no epsilon, which leaves theirs.
    assert (sparse.epsilon, sparse.attention.epsilon) == (1e-3, 1e-6)


def test_weights_are_drawn_with_the_deviation_of_the_config_and_each_anew():
    config = DeepSeekV3Config.from_preset("tiny", initializer_range=0.5, vocabulary_size=500)
    embedding, blocks, _ = make_backbone_layers(config, MultiHeadLatentAttention, POLICY)
    embedding.build()
    assert np.std(keras.ops.convert_to_numpy(embedding.embeddings)) - 0.5 < 0.02
    for block in blocks:
        block.build((None, None, config.hidden_dim))
    first_kernel, second_kernel = (
        keras.ops.convert_to_numpy(b.attention.key_up.kernel) for b in blocks
    )
    assert not np.allclose(first_kernel, second_kernel)


def test_modules_for_further_tokens_share_the_embedding_and_have_experts():
    config = DeepSeekV3Config.from_preset("tiny", num_prediction_layers=2)
    backbone = DeepSeekV3Backbone(config)
    prediction = make_multi_token_prediction(backbone)
    assert prediction.token_embedding is backbone.token_embedding
    assert prediction.output_head.token_embedding is backbone.token_embedding
    assert [type(block.feed_forward) for block in prediction.blocks] == [DeepSeekMoE] * 2
