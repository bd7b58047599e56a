"""The configs of Llama, Qwen2 and Qwen3."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from keras_deepseek.models.dense_decoder.dense_decoder_config import (
    WINDOW_KEYS,
    DenseDecoderConfig,
)
from keras_deepseek.models.dense_decoder.families import LLAMA, QWEN2, QWEN3
from keras_deepseek.models.family import Family


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(DenseDecoderConfig):
    """The sizes of a `LlamaCausalLM`.

    `from_preset` has `"tiny"`, `"deepseek_coder_1b"` (1.3 billion weights), `"deepseek_coder_7b"`
    (6.7), `"deepseek_coder_33b"`, `"deepseek_llm_7b"`, which is also the size of DeepSeek-Math,
    `"deepseek_r1_distill_llama_8b"` and `"deepseek_r1_distill_llama_70b"`.

    Args:
        vocabulary_size: integer. Number of tokens.
        hidden_dim: integer. Size of the hidden states.
        intermediate_dim: integer. Hidden size of the feed-forward layers.
        num_layers: integer. Number of decoder blocks.
        num_heads: integer. Number of heads of queries.
        num_key_value_heads: integer or `None`. Number of heads of keys and values, which divides
            `num_heads`; `None` is as many. Defaults to `None`.
        head_dim: integer or `None`. Size of a head; `None` is `hidden_dim / num_heads`. Defaults to
            `None`.
        rope_max_wavelength: float. The base of the rotary angles. Defaults to `10000.0`.
        rope_scaling: dict or `None`. The `scaling` of `RotaryEmbedding`. Defaults to `None`.
        attention_dropout: float. Dropout rate of attention weights. Defaults to `0.0`.
        epsilon: float. Added to the mean squares in the norms. Defaults to `1e-6`.
        max_length: integer or `None`. Largest number of positions, in tokens; a longer call raises
            an error. Defaults to `None`.
        tie_word_embeddings: boolean. Whether the logits use the token embedding instead of a kernel
            of the head. Defaults to `False`.
        initializer_range: float. Standard deviation of the initial weights. Defaults to `0.02`.
        start_token_id: integer or `None`. The token that starts a text. Defaults to `None`.
        end_token_id: integer, tuple of integers, or `None`. The tokens that end a text. Defaults to
            `None`.
        pad_token_id: integer or `None`. The padding token. Defaults to `None`.
        use_attention_bias: boolean. Whether all projections of attention have a bias. Defaults to
            `False`.
        use_feed_forward_bias: boolean. Whether the projections of the feed-forward layers have a
            bias. Defaults to `False`.

    Raises:
        InvalidInputError: A value is out of its range. The message names it.

    Example:

    >>> from keras_deepseek.models import LlamaConfig
    >>> config = LlamaConfig.from_preset("tiny", num_layers=4)
    >>> config.num_layers, config.hidden_dim
    (4, 64)
    """

    use_attention_bias: bool = False
    use_feed_forward_bias: bool = False

    own_keys: ClassVar[Mapping[str, str]] = {
        "attention_bias": "use_attention_bias",
        "mlp_bias": "use_feed_forward_bias",
    }
    family: ClassVar[Family] = LLAMA
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = LLAMA.presets


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(DenseDecoderConfig):
    """The sizes of a `Qwen2CausalLM`.

    The projections to queries, keys and values always have a bias. `from_preset` has `"tiny"`,
    `"deepseek_r1_distill_qwen_1b"` (1.5 billion weights without the embedding),
    `"deepseek_r1_distill_qwen_7b"`, `"deepseek_r1_distill_qwen_14b"` and
    `"deepseek_r1_distill_qwen_32b"`.

    Args:
        vocabulary_size: integer. Number of tokens.
        hidden_dim: integer. Size of the hidden states.
        intermediate_dim: integer. Hidden size of the feed-forward layers.
        num_layers: integer. Number of decoder blocks.
        num_heads: integer. Number of heads of queries.
        num_key_value_heads: integer or `None`. Number of heads of keys and values, which divides
            `num_heads`; `None` is as many. Defaults to `None`.
        head_dim: integer or `None`. Size of a head; `None` is `hidden_dim / num_heads`. Defaults to
            `None`.
        rope_max_wavelength: float. The base of the rotary angles. Defaults to `10000.0`.
        rope_scaling: dict or `None`. The `scaling` of `RotaryEmbedding`. Defaults to `None`.
        attention_dropout: float. Dropout rate of attention weights. Defaults to `0.0`.
        epsilon: float. Added to the mean squares in the norms. Defaults to `1e-6`.
        max_length: integer or `None`. Largest number of positions, in tokens; a longer call raises
            an error. Defaults to `None`.
        tie_word_embeddings: boolean. Whether the logits use the token embedding instead of a kernel
            of the head. Defaults to `False`.
        initializer_range: float. Standard deviation of the initial weights. Defaults to `0.02`.
        start_token_id: integer or `None`. The token that starts a text. Defaults to `None`.
        end_token_id: integer, tuple of integers, or `None`. The tokens that end a text. Defaults to
            `None`.
        pad_token_id: integer or `None`. The padding token. Defaults to `None`.
        sliding_window: integer or `None`. How many tokens a token sees in the layers of the type
            `"sliding_attention"`, itself included; `None` for no such layers. Defaults to `None`.
        layer_types: tuple of strings, or `None`. The type of each layer, `"full_attention"` or
            `"sliding_attention"`; `None` is full attention in all. Defaults to `None`.

    Raises:
        InvalidInputError: A value is out of its range. The message names it.

    Example:

    >>> from keras_deepseek.models import Qwen2Config
    >>> config = Qwen2Config.from_preset("tiny", num_layers=4)
    >>> config.num_layers, config.hidden_dim
    (4, 64)
    """

    sliding_window: int | None = None
    layer_types: Sequence[str] | None = None

    own_keys: ClassVar[Mapping[str, str]] = WINDOW_KEYS
    required_keys: ClassVar[tuple[str, ...]] = ("num_key_value_heads",)
    has_input_bias: ClassVar[bool] = True
    family: ClassVar[Family] = QWEN2
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = QWEN2.presets


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(DenseDecoderConfig):
    """The sizes of a `Qwen3CausalLM`.

    Each head of queries and keys has an RMS norm. `from_preset` has `"tiny"` and
    `"deepseek_r1_0528_qwen3_8b"`.

    Args:
        vocabulary_size: integer. Number of tokens.
        hidden_dim: integer. Size of the hidden states.
        intermediate_dim: integer. Hidden size of the feed-forward layers.
        num_layers: integer. Number of decoder blocks.
        num_heads: integer. Number of heads of queries.
        num_key_value_heads: integer or `None`. Number of heads of keys and values, which divides
            `num_heads`; `None` is as many. Defaults to `None`.
        head_dim: integer or `None`. Size of a head; `None` is `hidden_dim / num_heads`. Defaults to
            `None`.
        rope_max_wavelength: float. The base of the rotary angles. Defaults to `10000.0`.
        rope_scaling: dict or `None`. The `scaling` of `RotaryEmbedding`. Defaults to `None`.
        attention_dropout: float. Dropout rate of attention weights. Defaults to `0.0`.
        epsilon: float. Added to the mean squares in the norms. Defaults to `1e-6`.
        max_length: integer or `None`. Largest number of positions, in tokens; a longer call raises
            an error. Defaults to `None`.
        tie_word_embeddings: boolean. Whether the logits use the token embedding instead of a kernel
            of the head. Defaults to `False`.
        initializer_range: float. Standard deviation of the initial weights. Defaults to `0.02`.
        start_token_id: integer or `None`. The token that starts a text. Defaults to `None`.
        end_token_id: integer, tuple of integers, or `None`. The tokens that end a text. Defaults to
            `None`.
        pad_token_id: integer or `None`. The padding token. Defaults to `None`.
        use_attention_bias: boolean. Whether all projections of attention have a bias. Defaults to
            `False`.
        sliding_window: integer or `None`. How many tokens a token sees in the layers of the type
            `"sliding_attention"`, itself included; `None` for no such layers. Defaults to `None`.
        layer_types: tuple of strings, or `None`. The type of each layer, `"full_attention"` or
            `"sliding_attention"`; `None` is full attention in all. Defaults to `None`.

    Raises:
        InvalidInputError: A value is out of its range. The message names it.

    Example:

    >>> from keras_deepseek.models import Qwen3Config
    >>> config = Qwen3Config.from_preset("tiny", num_layers=4)
    >>> config.num_layers, config.hidden_dim
    (4, 64)
    """

    use_attention_bias: bool = False
    sliding_window: int | None = None
    layer_types: Sequence[str] | None = None

    own_keys: ClassVar[Mapping[str, str]] = {
        "attention_bias": "use_attention_bias",
        **WINDOW_KEYS,
    }
    required_keys: ClassVar[tuple[str, ...]] = ("num_key_value_heads", "head_dim")
    has_query_key_norm: ClassVar[bool] = True
    family: ClassVar[Family] = QWEN3
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = QWEN3.presets
