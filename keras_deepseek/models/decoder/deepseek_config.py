"""The base class of the configs of DeepSeek-V2, V3 and V3.2.

It reads and writes the `config.json` of transformers by tables of names. Each family adds what
differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.position.rotary_scaling import check_scaling
from keras_deepseek.models.checkpoints.checkpoint_config import (
    check_checkpoint_value,
    check_keys,
    check_required_keys,
    read_rope,
)
from keras_deepseek.models.family import Family
from keras_deepseek.models.preset_config import PresetConfig, check_token_ids

REQUIRED_KEYS = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_dim",
    "intermediate_size": "intermediate_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "qk_nope_head_dim": "nope_head_dim",
    "qk_rope_head_dim": "rope_head_dim",
    "v_head_dim": "value_head_dim",
    "kv_lora_rank": "key_value_lora_rank",
    "q_lora_rank": "query_lora_rank",
    "n_routed_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_token",
    "moe_intermediate_size": "moe_intermediate_dim",
    "n_shared_experts": "num_shared_experts",
    "first_k_dense_replace": "num_dense_layers",
    "n_group": "num_groups",
    "topk_group": "num_groups_per_token",
    "norm_topk_prob": "normalize_weights",
    "routed_scaling_factor": "routed_scale",
}
"""Keys of a `config.json` without which the model would be a guess, by our names."""

OPTIONAL_KEYS = {
    "moe_layer_freq": "moe_layer_frequency",
    "scoring_func": "scoring",
    "attention_bias": "use_attention_bias",
    "attention_dropout": "attention_dropout",
    "rms_norm_eps": "epsilon",
    "max_position_embeddings": "max_length",
    "tie_word_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
    "bos_token_id": "start_token_id",
    "eos_token_id": "end_token_id",
    "pad_token_id": "pad_token_id",
}

OTHER_KEYS = frozenset(
    {
        "aux_loss_alpha",  # For training, as the next key: see `balance_loss`.
        "seq_aux",
        "ep_size",  # The sharding of the experts.
        "head_dim",  # Follows from other keys, as the next one does.
        "qk_head_dim",
        "hidden_act",
        "mlp_bias",
        "num_experts",  # A copy of `n_routed_experts`, as `num_local_experts` is.
        "num_key_value_heads",
        "num_local_experts",
        "num_mtp_layers",
        "num_nextn_predict_layers",
        "output_router_logits",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "topk_method",
    }
)
"""Keys that are read in another way, or that do not change the model."""

_SIZES = (
    "vocabulary_size",
    "hidden_dim",
    "intermediate_dim",
    "num_layers",
    "num_heads",
    "nope_head_dim",
    "rope_head_dim",
    "value_head_dim",
    "key_value_lora_rank",
    "moe_layer_frequency",
    "num_groups",
    "num_groups_per_token",
)
_SIZES_OR_NONE = (
    "query_lora_rank",
    "num_experts",
    "num_experts_per_token",
    "moe_intermediate_dim",
    "max_length",
)
_COUNTS = ("num_shared_experts", "num_dense_layers", "num_prediction_layers")


@dataclass(frozen=True, kw_only=True)
class DeepSeekConfig(PresetConfig):
    """The config fields that the DeepSeek families share; each family's class documents them."""

    vocabulary_size: int
    hidden_dim: int
    intermediate_dim: int
    num_layers: int
    num_heads: int
    nope_head_dim: int
    rope_head_dim: int
    value_head_dim: int
    key_value_lora_rank: int
    query_lora_rank: int | None = None
    num_experts: int | None = None
    num_experts_per_token: int | None = None
    moe_intermediate_dim: int | None = None
    num_shared_experts: int = 1
    num_dense_layers: int = 0
    moe_layer_frequency: int = 1
    num_groups: int = 1
    num_groups_per_token: int = 1
    scoring: str = "sigmoid"
    normalize_weights: bool = True
    routed_scale: float = 1.0
    balance_loss: float = 0.0
    rope_max_wavelength: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    use_attention_bias: bool = False
    attention_dropout: float = 0.0
    epsilon: float = 1e-6
    max_length: int | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    num_prediction_layers: int = 0
    prediction_loss_weight: float = 0.3
    start_token_id: int | None = None
    end_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None

    family: ClassVar[Family]
    topk_methods: ClassVar[tuple[str, ...]]
    own_keys: ClassVar[Mapping[str, str]] = {}
    """The keys of a `config.json` that only this family has, by our names."""

    def __post_init__(self) -> None:
        for name in _SIZES:
            check_integer(name, getattr(self, name))
        for name in _SIZES_OR_NONE:
            check_integer(name, getattr(self, name), default=1)
        for name in _COUNTS:
            check_integer(name, getattr(self, name), minimum=0)
        for name in ("normalize_weights", "use_attention_bias", "tie_word_embeddings"):
            check_boolean(name, getattr(self, name))
        for name in ("epsilon", "balance_loss", "prediction_loss_weight", "initializer_range"):
            check_number(name, getattr(self, name), minimum=0)
        check_number("routed_scale", self.routed_scale, above=0)
        check_number("attention_dropout", self.attention_dropout, minimum=0, below=1)
        if self.rope_scaling is not None:
            scaling = check_scaling(self.rope_scaling, "rope_scaling")
            object.__setattr__(self, "rope_scaling", scaling)
        check_token_ids(self)
        self._check_experts()

    def _check_experts(self) -> None:
        if self.num_experts is None:
            return
        for name in ("num_experts_per_token", "moe_intermediate_dim"):
            if getattr(self, name) is None:
                raise InvalidInputError(
                    f"`{name}` must be a positive integer if there are experts "
                    f"(num_experts={self.num_experts}), received None."
                )

    def has_experts(self, index: int) -> bool:
        """Returns true if a layer has experts, false if it has one feed-forward layer.

        Args:
            index: integer. The index of the layer, from 0. The modules of multi-token prediction
                follow the other layers.
        """
        is_first = index < self.num_dense_layers
        return (
            self.num_experts is not None and not is_first and not index % self.moe_layer_frequency
        )

    def attention_arguments(self) -> dict[str, Any]:
        """Returns the arguments of the attention layer."""
        return {
            "num_heads": self.num_heads,
            "nope_head_dim": self.nope_head_dim,
            "rope_head_dim": self.rope_head_dim,
            "value_head_dim": self.value_head_dim,
            "key_value_lora_rank": self.key_value_lora_rank,
            "query_lora_rank": self.query_lora_rank,
            "use_causal_mask": True,
            "use_bias": self.use_attention_bias,
            "dropout": self.attention_dropout,
        }

    def rotary_arguments(self) -> dict[str, Any]:
        """Returns the arguments of the `RotaryEmbedding` in the attention layer."""
        return {
            "max_wavelength": self.rope_max_wavelength,
            "scaling": self.rope_scaling,
            "use_interleaved_pairs": True,
            "max_length": self.max_length,
        }

    def router_arguments(self) -> dict[str, Any]:
        """Returns the arguments of the router in a layer with experts."""
        return {
            "num_experts": self.num_experts,
            "num_experts_per_token": self.num_experts_per_token,
            "scoring": self.scoring,
            "num_groups": self.num_groups,
            "num_groups_per_token": self.num_groups_per_token,
            "normalize_weights": self.normalize_weights,
            "routed_scale": self.routed_scale,
            "balance_loss": self.balance_loss,
        }

    @classmethod
    def from_checkpoint_config(cls, values: Mapping[str, Any]) -> Self:
        """Returns the config that the `config.json` of a checkpoint describes.

        Modules that predict further tokens are built only if `num_prediction_layers` is given: many
        checkpoints name a number of modules and do not contain them.

        Args:
            values: dict. The content of the file.

        Raises:
            InvalidInputError: The file belongs to another model, a key is unknown or missing, or a
                value is out of its range.
        """
        names = {**REQUIRED_KEYS, **OPTIONAL_KEYS, **cls.own_keys}
        check_checkpoint_value(values, "model_type", allowed=(cls.family.model_type,))
        check_keys(values, [*names, *OTHER_KEYS])
        required = {*REQUIRED_KEYS, *cls.own_keys} - cls.optional_keys()
        check_required_keys(values, sorted(required))
        check_checkpoint_value(values, "hidden_act", allowed=("silu",))
        check_checkpoint_value(values, "mlp_bias", allowed=(False,))
        num_heads = values["num_attention_heads"]
        check_checkpoint_value(values, "num_key_value_heads", allowed=(num_heads,))
        check_checkpoint_value(values, "topk_method", allowed=cls.topk_methods)
        arguments = {field: values[key] for key, field in names.items() if key in values}
        # A null value stands for our default.
        arguments = {field: value for field, value in arguments.items() if value is not None}
        theta, scaling = read_rope(values)
        arguments |= {"rope_max_wavelength": theta, "rope_scaling": scaling}
        if values["n_shared_experts"] is None:
            arguments["num_shared_experts"] = 0
        if values.get("topk_method") == "greedy":  # Chooses among all experts, in no groups.
            arguments |= {"num_groups": 1, "num_groups_per_token": 1}
        return cls(**arguments)

    @classmethod
    def optional_keys(cls) -> set[str]:
        """Returns the keys of `own_keys` that a `config.json` may lack."""
        return set()

    def to_checkpoint_config(self) -> dict[str, Any]:
        """Returns the `config.json` from which transformers makes the same model.

        Transformers ignores a `moe_layer_frequency` other than 1, and a `scoring` other than the
        family's. DeepSeek's own code reads both.
        """
        names = {**REQUIRED_KEYS, **OPTIONAL_KEYS, **self.own_keys}
        values = {key: getattr(self, field) for key, field in names.items()}
        if self.max_length is None:
            del values["max_position_embeddings"]
        if self.num_experts is None:  # Transformers needs some, so all of its layers are dense.
            values |= {"n_routed_experts": 1, "num_experts_per_tok": 1, "moe_intermediate_size": 1}
            values["first_k_dense_replace"] = self.num_layers + self.num_prediction_layers
        has_groups = self.num_groups > 1
        return {
            "architectures": [self.family.architectures[0]],
            "model_type": self.family.model_type,
            "hidden_act": "silu",
            "num_key_value_heads": self.num_heads,
            "topk_method": self.topk_methods[-1 if has_groups else 0],
            "rope_theta": self.rope_max_wavelength,
            "rope_scaling": None if self.rope_scaling is None else dict(self.rope_scaling),
            "num_nextn_predict_layers": self.num_prediction_layers,
            **{key: list(x) if isinstance(x, tuple) else x for key, x in values.items()},
        }
