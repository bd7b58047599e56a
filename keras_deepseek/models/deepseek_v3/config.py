"""The config class of DeepSeek-V3 models, and the presets of the family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from keras_deepseek.checks import check_boolean
from keras_deepseek.models.decoder.deepseek_config import DeepSeekConfig
from keras_deepseek.models.family import Family

_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocabulary_size": 256,
        "hidden_dim": 64,
        "intermediate_dim": 128,
        "num_layers": 2,
        "num_heads": 4,
        "nope_head_dim": 16,
        "rope_head_dim": 8,
        "value_head_dim": 16,
        "key_value_lora_rank": 32,
        "query_lora_rank": 24,
        "num_experts": 8,
        "num_experts_per_token": 2,
        "moe_intermediate_dim": 32,
        "num_dense_layers": 1,
    },
    "deepseek_v3": {
        "vocabulary_size": 129280,
        "hidden_dim": 7168,
        "intermediate_dim": 18432,
        "num_layers": 61,
        "num_heads": 128,
        "nope_head_dim": 128,
        "rope_head_dim": 64,
        "value_head_dim": 128,
        "key_value_lora_rank": 512,
        "query_lora_rank": 1536,
        "num_experts": 256,
        "num_experts_per_token": 8,
        "moe_intermediate_dim": 2048,
        "num_dense_layers": 3,
        "num_groups": 8,
        "num_groups_per_token": 4,
        "routed_scale": 2.5,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "max_length": 163840,
        "start_token_id": 0,
        "end_token_id": 1,
    },
}

DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    presets=_PRESETS,
    peft_adapts_experts=True,
)


@dataclass(frozen=True, kw_only=True)
class DeepSeekV3Config(DeepSeekConfig):
    """The sizes of a `DeepSeekV3CausalLM`.

    `from_preset` has `"tiny"` and `"deepseek_v3"`.

    Args:
        vocabulary_size: integer. Number of tokens.
        hidden_dim: integer. Size of the hidden states.
        intermediate_dim: integer. Hidden size of a feed-forward layer without experts.
        num_layers: integer. Number of decoder blocks.
        num_heads: integer. Number of attention heads.
        nope_head_dim: integer. Size of the part of a query and key without position information.
        rope_head_dim: integer. Size of the part that is rotated by position; an even number.
        value_head_dim: integer. Size of a value.
        key_value_lora_rank: integer. Size of the compressed keys and values.
        query_lora_rank: integer or `None`. Size of the compressed queries; `None` projects queries
            directly. Defaults to `None`.
        num_experts: integer or `None`. Number of routed experts; `None` for a model without
            experts. Defaults to `None`.
        num_experts_per_token: integer or `None`. Number of routed experts for each token. Defaults
            to `None`.
        moe_intermediate_dim: integer or `None`. Hidden size of one expert. Defaults to `None`.
        num_shared_experts: integer. Number of experts that every token uses. Defaults to `1`.
        num_dense_layers: integer. Number of first blocks that have no experts. Defaults to `0`.
        moe_layer_frequency: integer. Among the other blocks, those whose index it divides have
            experts. Defaults to `1`.
        num_groups: integer. Number of groups of experts. Defaults to `1`.
        num_groups_per_token: integer. Number of groups that a token may choose from. Defaults to
            `1`.
        scoring: string. The `scoring` of `ExpertRouter`. Defaults to `"sigmoid"`.
        normalize_weights: boolean. Whether to divide the weights of a token's experts by their sum.
            Defaults to `True`.
        routed_scale: float. Factor of these weights. Defaults to `1.0`.
        balance_loss: float. Weight of a loss in training that makes each sequence use its experts
            evenly. A checkpoint's `aux_loss_alpha` is not read. Defaults to `0.0`.
        rope_max_wavelength: float. The base of the rotary angles. Defaults to `10000.0`.
        rope_scaling: dict or `None`. The `scaling` of `RotaryEmbedding`. Defaults to `None`.
        use_attention_bias: boolean. Whether the attention projections from and to the hidden states
            have a bias. Defaults to `False`.
        attention_dropout: float. Dropout rate of attention weights. Defaults to `0.0`.
        epsilon: float. Added to the mean squares in the norms of the blocks and the last norm. The
            norms inside attention use 1e-6. Defaults to `1e-6`.
        max_length: integer or `None`. Largest number of positions, in tokens; a longer call raises
            an error. Defaults to `None`.
        tie_word_embeddings: boolean. Whether the logits use the token embedding instead of a kernel
            of the head. Defaults to `False`.
        initializer_range: float. Standard deviation of the initial weights. Defaults to `0.02`.
        num_prediction_layers: integer. Number of modules that each predict one further token, whose
            loss is added in training. Defaults to `0`.
        prediction_loss_weight: float. Factor of that loss. Defaults to `0.3`.
        start_token_id: integer or `None`. The token that starts a text. Defaults to `None`.
        end_token_id: integer, tuple of integers, or `None`. The tokens that end a text. Defaults to
            `None`.
        pad_token_id: integer or `None`. The padding token. Defaults to `None`.
        use_interleaved_pairs: boolean. Whether a rotary pair consists of neighbours, as in
            DeepSeek's own checkpoints, instead of entries that are half of `rope_head_dim` apart.
            Defaults to `True`.

    Raises:
        InvalidInputError: A value is out of its range. The message names it.

    Example:

    >>> from keras_deepseek.models import DeepSeekV3Config
    >>> config = DeepSeekV3Config.from_preset("tiny", num_layers=4)
    >>> config.num_layers, config.hidden_dim
    (4, 64)
    """

    use_interleaved_pairs: bool = True

    topk_methods: ClassVar[tuple[str, ...]] = ("noaux_tc",)
    family: ClassVar[Family] = DEEPSEEK_V3
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = DEEPSEEK_V3.presets
    own_keys: ClassVar[Mapping[str, str]] = {"rope_interleave": "use_interleaved_pairs"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_boolean("use_interleaved_pairs", self.use_interleaved_pairs)

    @classmethod
    def optional_keys(cls) -> set[str]:
        return {"rope_interleave"}  # DeepSeek's own files lack it, and have pairs of neighbours.

    def rotary_arguments(self) -> dict[str, Any]:
        return {
            **super().rotary_arguments(),
            "use_interleaved_pairs": self.use_interleaved_pairs,
        }
