"""A small language model, and what it must generate: chosen in NumPy, without a cache."""

from dataclasses import dataclass

import keras
import numpy as np

from keras_deepseek.layers import (
    DeepSeekMoE,
    ExpertRouter,
    MultiHeadLatentAttention,
    MultiTokenPrediction,
    RotaryEmbedding,
    SwiGLU,
)
from keras_deepseek.models.causal_lm import CausalLM
from keras_deepseek.models.decoder import DecoderBlock, TokenLogits
from keras_deepseek.models.decoder.decoder_backbone import DecoderBackbone


@dataclass(frozen=True)
class SmallConfig:
    vocabulary_size: int = 50
    dim: int = 16
    max_length: int = 600
    num_prediction_layers: int = 0


class SmallBackbone(DecoderBackbone):
    config_class = SmallConfig

    def __init__(self, config, **kwargs):
        super().__init__(
            config,
            keras.layers.ReversibleEmbedding(
                config.vocabulary_size, config.dim, tie_weights=False, name="token_embedding"
            ),
            [make_block(SwiGLU(24), 0), make_block(make_mixture(), 1)],
            keras.layers.RMSNormalization(name="final_norm"),
            **kwargs,
        )


class SmallCausalLM(CausalLM):
    config_class = SmallConfig

    def __init__(self, config, **kwargs):
        backbone = SmallBackbone(config, name="backbone")
        prediction = None
        if config.num_prediction_layers:
            prediction = MultiTokenPrediction(
                make_block(SwiGLU(24), 2),
                backbone.token_embedding,
                TokenLogits(backbone.token_embedding),
                depth=config.num_prediction_layers,
            )
        super().__init__(backbone, multi_token_prediction=prediction, **kwargs)


def make_block(feed_forward, index):
    attention = MultiHeadLatentAttention(
        2,
        nope_head_dim=8,
        rope_head_dim=4,
        value_head_dim=8,
        key_value_lora_rank=8,
        query_lora_rank=12,
        rotary=RotaryEmbedding(use_interleaved_pairs=True),
        use_causal_mask=True,
    )
    return DecoderBlock(attention, feed_forward, name=f"block_{index}")


def make_mixture():
    return DeepSeekMoE(ExpertRouter(num_experts=4, num_experts_per_token=2), 12)


def make_small_model(seed=0, scale=3.0, **config):
    """Returns a model whose distributions are far from even, so that a wrong token is seen."""
    model = SmallCausalLM(SmallConfig(**config))
    # The same on all backends: by their own numbers a draft might be kept on one alone.
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            drawn = rng.normal(size=variable.shape) * variable.shape[-2] ** -0.5
            variable.assign(drawn * (0.1 if "embedding" in variable.path else 1.0))
    table = model.backbone.token_embedding.reverse_embeddings
    table.assign(table * scale * 4)
    embeddings = model.backbone.token_embedding.embeddings
    embeddings.assign(embeddings * 20)
    return model


def compute_logits(model, token_ids, length=32):
    """Returns the logits of the next token by a call on the whole sequence, padded behind."""
    padded = np.zeros((2, 1, length), "int32")
    padded[0, 0, : len(token_ids)] = token_ids
    padded[1, 0, : len(token_ids)] = 1
    # Compiled, and for one length: eager JAX compiles each operation for each.
    inputs = {"token_ids": padded[0], "padding_mask": padded[1]}
    return model.predict_on_batch(inputs)[0, len(token_ids) - 1].astype("float64")


def generate_greedily(model, prompt, number, stop=()):
    """Returns the tokens of a prompt and behind it, by calls on the whole sequence."""
    tokens = list(prompt)
    for _ in range(number):
        tokens.append(int(np.argmax(compute_logits(model, tokens))))
        if tokens[-1] in stop:
            break
    return tokens


class WordTokenizer:
    """Each token is two bytes of a fixed table, so that a character may lie in two tokens."""

    def __init__(self, end_token_id=0):
        self.stop_token_ids = () if end_token_id is None else (end_token_id,)

    def tokenize(self, text):
        return [3 + byte % 47 for byte in text.encode()]

    def detokenize(self, tokens):
        return b"".join(PIECES[token % len(PIECES)] for token in tokens).decode(errors="replace")


PIECES = (b"a", b"b", b" ", "\u00e9".encode()[:1], "\u00e9".encode()[1:], b"word ")
