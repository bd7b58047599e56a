"""A small model of each family of this package, by its own class."""

from typing import Any

import keras

from keras_deepseek import models

VOCABULARY = 50


def _language_model(task: Any, **overrides: Any) -> keras.Model:
    """Returns a decoder from token ids and a padding mask to logits."""
    sizes = {"vocabulary_size": VOCABULARY, "hidden_dim": 16, **overrides}
    return task(task.config_class.from_preset("tiny", **sizes))


def deepseek_v2_causal_lm() -> keras.Model:
    return _language_model(models.DeepSeekV2CausalLM)


def deepseek_v3_causal_lm() -> keras.Model:
    """Its module for further tokens adds a loss in training, and nothing to the logits."""
    return _language_model(models.DeepSeekV3CausalLM, num_prediction_layers=1)


def deepseek_v32_causal_lm() -> keras.Model:
    return _language_model(models.DeepSeekV32CausalLM, index_top_k=5)


def deepseek_v4_causal_lm() -> keras.Model:
    """A layer of each kind of attention, routed by tokens and by scores."""
    kinds = ("sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention")
    return _language_model(
        models.DeepSeekV4CausalLM,
        layer_types=kinds,
        router_types=("hash", "score", "score"),
        heavy_compress_rate=6,
        index_top_k=2,
        sliding_window=4,
    )


def bert_masked_lm() -> keras.Model:
    sizes = {"vocabulary_size": VOCABULARY, "hidden_dim": 16, "intermediate_dim": 32}
    return models.BertMaskedLM(models.BertConfig.from_preset("tiny", max_length=48, **sizes))


def sequential_recommender() -> keras.Model:
    """From histories to the best items, as `make_serving_model` makes it to be served."""
    config = models.SequentialRecommenderConfig.from_preset("tiny", num_items=40, max_length=20)
    return models.SequentialRecommender(config).make_serving_model(k=5)


MODELS = {
    builder.__name__: builder
    for builder in (
        deepseek_v2_causal_lm,
        deepseek_v3_causal_lm,
        deepseek_v32_causal_lm,
        deepseek_v4_causal_lm,
        bert_masked_lm,
        sequential_recommender,
    )
}
