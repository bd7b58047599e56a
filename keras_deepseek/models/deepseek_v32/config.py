"""The config class of DeepSeek-V3.2 models, and the presets of the family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.checkpoints.checkpoint_config import check_checkpoint_value
from keras_deepseek.models.decoder.deepseek_config import DeepSeekConfig
from keras_deepseek.models.deepseek_v3.config import DEEPSEEK_V3
from keras_deepseek.models.family import Family

_PRESETS: dict[str, Mapping[str, Any]] = {
    "tiny": {
        **DEEPSEEK_V3.presets["tiny"],
        "index_top_k": 16,
        "index_num_heads": 4,
        "index_head_dim": 16,
    },
    "deepseek_v32": DEEPSEEK_V3.presets["deepseek_v3"],
}

DEEPSEEK_V32 = Family(
    model_type="deepseek_v32",
    architectures=("DeepseekV32ForCausalLM",),
    presets=_PRESETS,
    peft_adapts_experts=True,
)


_LAYER_TYPES = ("indexed_attention", "deepseek_sparse_attention")
"""The same kind of layer, named differently by releases of transformers."""


@dataclass(frozen=True, kw_only=True)
class DeepSeekV32Config(DeepSeekConfig):
    """The sizes of a `DeepSeekV32CausalLM`.

    `from_preset` has `"tiny"` and `"deepseek_v32"`.

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
        index_top_k: integer. Largest number of keys that each token attends to. Defaults to `2048`.
        index_num_heads: integer. Number of heads of the indexer. Defaults to `64`.
        index_head_dim: integer. Size of a head of the indexer. Defaults to `128`.
        indexer_loss_weight: float or `None`. Weight of the loss that trains the indexer; `None`
            does not train it. Defaults to `None`.
        feed_forward_types: tuple of strings or `None`. For each block `"dense"`, or `"sparse"` for
            experts; `None` uses `num_dense_layers` and `moe_layer_frequency`. Defaults to `None`.

    Raises:
        InvalidInputError: A value is out of its range. The message names it.

    Example:

    >>> from keras_deepseek.models import DeepSeekV32Config
    >>> config = DeepSeekV32Config.from_preset("tiny", num_layers=4)
    >>> config.num_layers, config.hidden_dim
    (4, 64)
    """

    index_top_k: int = 2048
    index_num_heads: int = 64
    index_head_dim: int = 128
    indexer_loss_weight: float | None = None
    feed_forward_types: Sequence[str] | None = None

    topk_methods: ClassVar[tuple[str, ...]] = ("noaux_tc",)
    family: ClassVar[Family] = DEEPSEEK_V32
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = DEEPSEEK_V32.presets
    own_keys: ClassVar[Mapping[str, str]] = {
        "index_topk": "index_top_k",
        "index_n_heads": "index_num_heads",
        "index_head_dim": "index_head_dim",
        "mlp_layer_types": "feed_forward_types",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("index_top_k", "index_num_heads", "index_head_dim"):
            check_integer(name, getattr(self, name))
        if self.indexer_loss_weight is not None:
            check_number("indexer_loss_weight", self.indexer_loss_weight, above=0)
        types = self.feed_forward_types
        if types is None:
            return
        if len(types) != self.num_layers or not {*types} <= {"dense", "sparse"}:
            raise InvalidInputError(
                f"`feed_forward_types` must be 'dense' or 'sparse' for each of the "
                f"{self.num_layers} layers, received {types!r}."
            )
        object.__setattr__(self, "feed_forward_types", tuple(types))  # JSON returns a list.

    def has_experts(self, index: int) -> bool:
        types = self.feed_forward_types
        if types is None or index >= len(types):
            return super().has_experts(index)
        return self.num_experts is not None and types[index] == "sparse"

    def attention_arguments(self) -> dict[str, Any]:
        return {
            **super().attention_arguments(),
            "index_top_k": self.index_top_k,
            "index_num_heads": self.index_num_heads,
            "index_head_dim": self.index_head_dim,
            "indexer_loss_weight": self.indexer_loss_weight,
        }

    @classmethod
    def optional_keys(cls) -> set[str]:
        return {"mlp_layer_types"}

    @classmethod
    def from_checkpoint_config(cls, values: Mapping[str, Any]) -> Self:
        values = dict(values)
        for layer_type in values.pop("layer_types", None) or ():
            check_checkpoint_value({"layer_types": layer_type}, "layer_types", allowed=_LAYER_TYPES)
        config = super().from_checkpoint_config(values)
        by_number = replace(config, feed_forward_types=None)
        # Transformers writes a type for each layer, even if `first_k_dense_replace` is enough.
        is_alike = all(
            config.has_experts(index) == by_number.has_experts(index)
            for index in range(config.num_layers)
        )
        return by_number if is_alike else config

    def to_checkpoint_config(self) -> dict[str, Any]:
        values = super().to_checkpoint_config()
        values["mlp_layer_types"] = [
            "sparse" if self.has_experts(index) else "dense" for index in range(self.num_layers)
        ]
        return values
