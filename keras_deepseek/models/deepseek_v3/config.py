"""What a DeepSeek-V3 is made of; read by its backbone and its task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from keras_deepseek.checks import check_boolean
from keras_deepseek.models.decoder.deepseek_config import DeepSeekConfig
from keras_deepseek.models.deepseek_v3.family import DEEPSEEK_V3
from keras_deepseek.models.family import Family


@dataclass(frozen=True, kw_only=True)
class DeepSeekV3Config(DeepSeekConfig):
    """The sizes of a `DeepSeekV3CausalLM`.

    `from_preset` has `"tiny"` and `"deepseek_v3"`.

    Args:
        vocabulary_size: integer. Number of tokens.
        hidden_dim: integer. Size of the hidden states.
        intermediate_dim: integer. Size of the hidden activations of a feed-forward layer that has
            no experts.
        num_layers: integer. Number of decoder blocks.
        num_heads: integer. Number of attention heads.
        nope_head_dim: integer. Size of the part of a query and key that knows no position.
        rope_head_dim: integer. Size of the part that is rotated by position; an even number.
        value_head_dim: integer. Size of a value.
        key_value_lora_rank: integer. Size of the compressed keys and values.
        query_lora_rank: integer or `None`. Size of the compressed queries; `None` projects queries
            directly. Defaults to `None`.
        num_experts: integer or `None`. Number of routed experts; `None` for a model without.
            Defaults to `None`.
        num_experts_per_token: integer or `None`. How many of them each token goes to. Defaults to
            `None`.
        moe_intermediate_dim: integer or `None`. Size of the hidden activations of one expert.
            Defaults to `None`.
        num_shared_experts: integer. How many experts every token uses. Defaults to `1`.
        num_dense_layers: integer. How many of the first blocks have no experts. Defaults to `0`.
        moe_layer_frequency: integer. Behind those, blocks whose number it divides have experts.
            Defaults to `1`.
        num_groups: integer. The number of groups that experts stand in. Defaults to `1`.
        num_groups_per_token: integer. How many groups a token may choose from. Defaults to `1`.
        scoring: string. The `scoring` of `ExpertRouter`. Defaults to `"sigmoid"`.
        normalize_weights: boolean. Whether the weights of a token's experts are divided by their
            sum. Defaults to `True`.
        routed_scale: float. What these weights are multiplied with. Defaults to `1.0`.
        balance_loss: float. Weight of the loss that asks every sequence to use its experts evenly,
            in training alone. A checkpoint's `aux_loss_alpha` is not read. Defaults to `0.0`.
        rope_max_wavelength: float. The base of the rotary angles. Defaults to `10000.0`.
        rope_scaling: dict or `None`. The `scaling` of `RotaryEmbedding`. Defaults to `None`.
        use_attention_bias: boolean. Whether the projections of attention from and to the hidden
            states add a bias. Defaults to `False`.
        attention_dropout: float. Rate at which attention weights are dropped in training. Defaults
            to `0.0`.
        epsilon: float. Added to the mean squares in the norms of the blocks and the last one; those
            within attention add 1e-6. Defaults to `1e-6`.
        max_length: integer or `None`. Number of positions, in tokens, beyond which a call is
            refused. Defaults to `None`.
        tie_word_embeddings: boolean. Whether the logits are made by the embedding of the tokens,
            rather than by a kernel of the head. Defaults to `False`.
        initializer_range: float. Standard deviation of the weights at first. Defaults to `0.02`.
        num_prediction_layers: integer. Number of modules that predict a further token each, whose
            loss is added in training. Defaults to `0`.
        prediction_loss_weight: float. What that loss is multiplied with. Defaults to `0.3`.
        start_token_id: integer or `None`. The token that a text begins with. Defaults to `None`.
        end_token_id: integer, tuple of integers, or `None`. The tokens that end a text. Defaults to
            `None`.
        pad_token_id: integer or `None`. The token that stands for padding. Defaults to `None`.
        use_interleaved_pairs: boolean. Whether neighbours are a rotary pair, as in DeepSeek's own
            checkpoints, rather than entries half of `rope_head_dim` apart. Defaults to `True`.

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
        return {"rope_interleave"}  # DeepSeek's own files have none, and pairs of neighbours.

    def attention_arguments(self) -> dict[str, Any]:
        return {
            **super().attention_arguments(),
            "use_interleaved_pairs": self.use_interleaved_pairs,
        }
