"""The config class of DeepSeek-V2 models, and the presets of the family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from keras_deepseek.models.decoder.deepseek_config import DeepSeekConfig
from keras_deepseek.models.family import Family

_PUBLISHED: dict[str, Any] = {
    "vocabulary_size": 102400,
    "nope_head_dim": 128,
    "rope_head_dim": 64,
    "value_head_dim": 128,
    "key_value_lora_rank": 512,
    "num_experts_per_token": 6,
    "num_shared_experts": 2,
    "num_dense_layers": 1,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    },
    "max_length": 163840,
    "start_token_id": 100000,
    "end_token_id": 100001,
}

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
        "num_experts": 8,
        "num_experts_per_token": 2,
        "moe_intermediate_dim": 32,
        "num_dense_layers": 1,
    },
    "deepseek_v2_lite": {
        **_PUBLISHED,
        "hidden_dim": 2048,
        "intermediate_dim": 10944,
        "num_layers": 27,
        "num_heads": 16,
        "num_experts": 64,
        "moe_intermediate_dim": 1408,
    },
    "deepseek_v2": {
        **_PUBLISHED,
        "hidden_dim": 5120,
        "intermediate_dim": 12288,
        "num_layers": 60,
        "num_heads": 128,
        "query_lora_rank": 1536,
        "num_experts": 160,
        "moe_intermediate_dim": 1536,
        "num_groups": 8,
        "num_groups_per_token": 3,
        "routed_scale": 16.0,
    },
}

DEEPSEEK_V2 = Family(
    model_type="deepseek_v2",
    architectures=("DeepseekV2ForCausalLM",),
    presets=_PRESETS,
    peft_adapts_experts=True,
)


@dataclass(frozen=True, kw_only=True)
class DeepSeekV2Config(DeepSeekConfig):
    """The sizes of a `DeepSeekV2CausalLM`.

    If weights are normalized, they are not multiplied with `routed_scale`, as in DeepSeek's own
    code. Transformers ignores `norm_topk_prob`. No published checkpoint sets it.

    `from_preset` has `"tiny"`, `"deepseek_v2_lite"` and `"deepseek_v2"`.

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
        scoring: string. The `scoring` of `ExpertRouter`. Defaults to `"softmax"`.
        normalize_weights: boolean. Whether to divide the weights of a token's experts by their sum.
            Defaults to `False`.
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

    Raises:
        InvalidInputError: A value is out of its range. The message names it.

    Example:

    >>> from keras_deepseek.models import DeepSeekV2Config
    >>> config = DeepSeekV2Config.from_preset("tiny", num_layers=4)
    >>> config.num_layers, config.hidden_dim
    (4, 64)
    """

    scoring: str = "softmax"
    normalize_weights: bool = False

    topk_methods: ClassVar[tuple[str, ...]] = ("greedy", "group_limited_greedy")
    family: ClassVar[Family] = DEEPSEEK_V2
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = DEEPSEEK_V2.presets

    def router_arguments(self) -> dict[str, Any]:
        arguments = {
            **super().router_arguments(),
            "group_scoring": "max",
            "use_expert_bias": False,
        }
        if self.normalize_weights:
            arguments["routed_scale"] = 1.0
        return arguments
