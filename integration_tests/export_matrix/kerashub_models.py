"""Small models of KerasHub, of random weights; its BERT is among the other libraries' models."""

from collections.abc import Callable
from typing import Any

import keras

_SIZES = {"vocabulary_size": 50, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32}
_POSITIONS = {"max_sequence_length": 48}


def _builder(backbone: str, **sizes: Any) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        import keras_hub

        return getattr(keras_hub.models, backbone)(**sizes)

    return build


def bert_classifier() -> keras.Model:
    import keras_hub

    backbone = keras_hub.models.BertBackbone(**_SIZES, **_POSITIONS, num_heads=2)
    return keras_hub.models.BertTextClassifier(backbone, num_classes=3)


MODELS = {
    "kerashub_gpt2": _builder("GPT2Backbone", **_SIZES, **_POSITIONS, num_heads=2),
    "kerashub_vit": _builder(
        "ViTBackbone",
        image_shape=(28, 28, 3),
        patch_size=(4, 4),
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    ),
    "kerashub_bert_classifier": bert_classifier,
    "kerashub_llama": _builder(
        "Llama3Backbone", **_SIZES, num_query_heads=4, num_key_value_heads=2
    ),
    "kerashub_gemma": _builder(
        "GemmaBackbone", **_SIZES, num_query_heads=2, num_key_value_heads=1, head_dim=8
    ),
    "kerashub_t5": _builder("T5Backbone", **_SIZES, num_heads=2),
    "kerashub_whisper": _builder(
        "WhisperBackbone",
        vocabulary_size=50,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_encoder_sequence_length=32,
        max_decoder_sequence_length=32,
    ),
}
