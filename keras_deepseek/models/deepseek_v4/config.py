"""The config class of DeepSeek-V4 models: their sizes and options."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.layers.position.rotary_scaling import check_scaling
from keras_deepseek.models.deepseek_v4.checkpoint_config import (
    read_checkpoint_config,
    write_checkpoint_config,
)
from keras_deepseek.models.deepseek_v4.family import DEEPSEEK_V4
from keras_deepseek.models.family import Family
from keras_deepseek.models.preset_config import PresetConfig, check_token_ids

LAYER_TYPES = ("sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention")
ROUTER_TYPES = ("hash", "score")
SCORINGS = ("sqrt_softplus", "sigmoid")

_SIZES = (
    "vocabulary_size",
    "hidden_dim",
    "num_heads",
    "head_dim",
    "rope_head_dim",
    "query_lora_rank",
    "num_output_groups",
    "output_lora_rank",
    "moe_intermediate_dim",
    "num_experts",
    "num_experts_per_token",
    "sliding_window",
    "sparse_compress_rate",
    "heavy_compress_rate",
    "index_num_heads",
    "index_head_dim",
    "index_top_k",
    "sinkhorn_iterations",
    "max_length",
)
_MIN_STREAMS = 2


@dataclass(frozen=True, kw_only=True)
class DeepSeekV4Config(PresetConfig):
    """The sizes of a `DeepSeekV4Backbone` and a `DeepSeekV4CausalLM`.

    Each layer has one of three types of attention, and a mixture of experts with one of two
    routers. `ManifoldConstrainedHyperConnections` connect them with residual streams.

    `from_preset` has `"tiny"`, `"deepseek_v4_flash"` and `"deepseek_v4_pro"`.

    Args:
        vocabulary_size: integer. Number of tokens.
        hidden_dim: integer. Size of a token in one residual stream.
        num_heads: integer. Number of attention heads.
        head_dim: integer. Size of a head of queries, and of the single key.
        rope_head_dim: integer. Size of the part of a head that is rotated by position; an even
            number.
        query_lora_rank: integer. Size of the compressed queries.
        num_output_groups: integer. Number of groups in which the heads are projected.
        output_lora_rank: integer. Size of a group's projection.
        moe_intermediate_dim: integer. Hidden size of an expert, and of the shared expert.
        num_experts: integer. Number of routed experts.
        num_experts_per_token: integer. Number of routed experts for each token.
        layer_types: tuple of strings. The attention of each layer: `"sliding_attention"`,
            `"compressed_sparse_attention"` or `"heavily_compressed_attention"`. Its length is the
            number of layers.
        router_types: tuple of strings. The router of each layer: `"hash"`, by the token id, or
            `"score"`.
        sliding_window: integer. Number of uncompressed tokens that a token attends to, itself
            included. Defaults to `128`.
        sparse_compress_rate: integer. Number of tokens in an entry of a compressed sparse
            attention. Defaults to `4`.
        heavy_compress_rate: integer. Number of tokens in an entry of a heavily compressed
            attention. Defaults to `128`.
        index_num_heads: integer. Number of heads of the indexer. Defaults to `64`.
        index_head_dim: integer. Size of a head of the indexer. Defaults to `128`.
        index_top_k: integer. Number of entries that a token attends to in a compressed sparse
            attention. Defaults to `512`.
        num_streams: integer. Number of residual streams. Defaults to `4`.
        sinkhorn_iterations: integer. Number of Sinkhorn iterations that normalize the mixing of the
            streams. Defaults to `20`.
        stream_epsilon: float. Added to the weights of the streams. Defaults to `1e-6`.
        scoring: string. The scores of the routers: `"sqrt_softplus"` or `"sigmoid"`. Defaults to
            `"sqrt_softplus"`.
        routed_scale: float. Factor of the weights of the experts. Defaults to `1.5`.
        clamp: float. Bound of the hidden activations of the experts. Defaults to `10.0`.
        rope_max_wavelength: float. The base of the rotary angles in sliding attention. Defaults to
            `10000.0`.
        rope_scaling: dict or `None`. The scaling of these angles, as in `SlidingWindowAttention`.
            Defaults to `None`.
        compress_rope_max_wavelength: float. The base of the rotary angles in the two compressed
            attentions. Defaults to `160000.0`.
        compress_rope_scaling: dict or `None`. The scaling of these angles. Defaults to `None`.
        max_length: integer. Largest number of positions, in tokens. Defaults to `1048576`.
        epsilon: float. Added to the mean squares in the norms. Defaults to `1e-6`.
        attention_dropout: float. Dropout rate of attention weights. Defaults to `0.0`.
        tie_word_embeddings: boolean. Whether the logits use the token embedding. Defaults to
            `False`.
        num_prediction_layers: integer. Number of layers after the model that predict tokens further
            ahead. Defaults to `0`.
        prediction_loss_weight: float. Factor of their loss. Defaults to `0.3`.
        initializer_range: float. Standard deviation of the initial kernels. Defaults to `0.02`.
        start_token_id: integer or `None`. The token that starts a text. Defaults to `None`.
        end_token_id: integer, tuple of integers or `None`. The token or tokens that end a text.
            Defaults to `None`.
        pad_token_id: integer or `None`. The padding token. Defaults to `None`.

    Raises:
        InvalidInputError: A value is out of its range. The message names it.

    Example:

    >>> from keras_deepseek.models import DeepSeekV4Config
    >>> config = DeepSeekV4Config.from_preset("tiny", vocabulary_size=100)
    >>> config.num_layers
    4

    Reference:

    - [DeepSeek-V4 (DeepSeek-AI, 2026)](https://huggingface.co/deepseek-ai/DeepSeek-V4-Flash-Base)
    """

    vocabulary_size: int
    hidden_dim: int
    num_heads: int
    head_dim: int
    rope_head_dim: int
    query_lora_rank: int
    num_output_groups: int
    output_lora_rank: int
    moe_intermediate_dim: int
    num_experts: int
    num_experts_per_token: int
    layer_types: Sequence[str]
    router_types: Sequence[str]
    sliding_window: int = 128
    sparse_compress_rate: int = 4
    heavy_compress_rate: int = 128
    index_num_heads: int = 64
    index_head_dim: int = 128
    index_top_k: int = 512
    num_streams: int = 4
    sinkhorn_iterations: int = 20
    stream_epsilon: float = 1e-6
    scoring: str = "sqrt_softplus"
    routed_scale: float = 1.5
    clamp: float = 10.0
    rope_max_wavelength: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    compress_rope_max_wavelength: float = 160000.0
    compress_rope_scaling: Mapping[str, Any] | None = None
    max_length: int = 1048576
    epsilon: float = 1e-6
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False
    num_prediction_layers: int = 0
    prediction_loss_weight: float = 0.3
    initializer_range: float = 0.02
    start_token_id: int | None = None
    end_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None

    family: ClassVar[Family] = DEEPSEEK_V4
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = DEEPSEEK_V4.presets

    def __post_init__(self) -> None:
        for name in ("layer_types", "router_types"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON returns lists.
        for name in _SIZES:
            check_integer(name, getattr(self, name))
        check_integer("num_streams", self.num_streams, minimum=_MIN_STREAMS)
        check_integer("num_prediction_layers", self.num_prediction_layers, minimum=0)
        for name in ("stream_epsilon", "epsilon", "prediction_loss_weight", "initializer_range"):
            check_number(name, getattr(self, name), minimum=0)
        for name in ("routed_scale", "clamp"):
            check_number(name, getattr(self, name), above=0)
        for name in ("rope_max_wavelength", "compress_rope_max_wavelength"):
            check_number(name, getattr(self, name), above=1)
        check_number("attention_dropout", self.attention_dropout, minimum=0, below=1)
        check_boolean("tie_word_embeddings", self.tie_word_embeddings)
        for name in ("rope_scaling", "compress_rope_scaling"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_scaling(getattr(self, name), name))
        check_token_ids(self)
        self._check_types()
        self._check_fits()

    def _check_types(self) -> None:
        for name, choices in (("layer_types", LAYER_TYPES), ("router_types", ROUTER_TYPES)):
            for choice in getattr(self, name):
                if choice not in choices:
                    raise InvalidInputError(
                        unknown_name_message(f"name in `{name}`", choice, choices)
                    )
        if self.scoring not in SCORINGS:
            raise InvalidInputError(unknown_name_message("`scoring`", self.scoring, SCORINGS))
        if not self.layer_types or len(self.layer_types) != len(self.router_types):
            raise InvalidInputError(
                "`layer_types` and `router_types` must have one name for each layer, received "
                f"{len(self.layer_types)} and {len(self.router_types)} names."
            )

    def _check_fits(self) -> None:
        rotated = self.head_dim
        if "compressed_sparse_attention" in self.layer_types:
            rotated = min(rotated, self.index_head_dim)
        if self.rope_head_dim % 2 or self.rope_head_dim > rotated:
            raise InvalidInputError(
                "`rope_head_dim` must be even and at most `head_dim` and `index_head_dim`, "
                f"received {self.rope_head_dim}, {self.head_dim} and {self.index_head_dim}."
            )
        if self.num_heads % self.num_output_groups:
            raise InvalidInputError(
                "`num_output_groups` must divide `num_heads`, received "
                f"{self.num_output_groups} and {self.num_heads}."
            )
        if self.num_experts_per_token > self.num_experts:
            raise InvalidInputError(
                "`num_experts_per_token` must be at most `num_experts`, received "
                f"{self.num_experts_per_token} and {self.num_experts}."
            )

    @property
    def num_layers(self) -> int:
        """The number of layers, without those that predict further tokens."""
        return len(self.layer_types)

    @classmethod
    def from_checkpoint_config(
        cls, values: Mapping[str, Any], **overrides: Any
    ) -> "DeepSeekV4Config":
        """Returns the config that the `config.json` of a checkpoint describes.

        Layers that predict further tokens are built only if `num_prediction_layers` is given:
        checkpoints that transformers wrote name a number of layers and do not contain them.

        Args:
            values: dict. The content of the file, from transformers or from DeepSeek.
            **overrides: Arguments that replace those of the file.

        Raises:
            InvalidInputError: The file belongs to another model, a key is unknown, or a value is
                not supported.
        """
        return cls(**{**read_checkpoint_config(values), **overrides})

    def to_checkpoint_config(self) -> dict[str, Any]:
        """Returns the `config.json` that transformers reads."""
        return write_checkpoint_config(asdict(self))
