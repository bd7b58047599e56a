"""The base class of the configs of dense decoders: Llama, Qwen2 and Qwen3.

It reads and writes the `config.json` of transformers by tables of names. A family adds its own
keys, and says what its attention has.
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

_REQUIRED_KEYS = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_dim",
    "intermediate_size": "intermediate_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}
"""Keys of a `config.json` without which the model would be a guess, by our names."""

_OPTIONAL_KEYS = {
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "attention_dropout": "attention_dropout",
    "rms_norm_eps": "epsilon",
    "max_position_embeddings": "max_length",
    "tie_word_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
    "bos_token_id": "start_token_id",
    "eos_token_id": "end_token_id",
    "pad_token_id": "pad_token_id",
}

WINDOW_KEYS = {"sliding_window": "sliding_window", "layer_types": "layer_types"}
_WINDOW_SWITCHES = ("use_sliding_window", "max_window_layers")
_FIRST_WINDOW_LAYER, _WINDOW_TOKENS = 28, 4096
"""The defaults of transformers."""

_FIXED_VALUES = {"hidden_act": ("silu",), "use_mrope": (False,)}
"""Keys that change the model, with the only values that are supported."""

_OTHER_KEYS = ("model_type", "rope_parameters", "rope_scaling", "rope_theta")
_FULL, _SLIDING = LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, kw_only=True)
class DenseDecoderConfig(PresetConfig):
    """The config fields that dense decoders share; each family's class documents them."""

    vocabulary_size: int
    hidden_dim: int
    intermediate_dim: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rope_max_wavelength: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    attention_dropout: float = 0.0
    epsilon: float = 1e-6
    max_length: int | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    start_token_id: int | None = None
    end_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None

    family: ClassVar[Family]
    own_keys: ClassVar[Mapping[str, str]]
    """The keys of a `config.json` that only this family has, by our names."""
    required_keys: ClassVar[tuple[str, ...]] = ()
    """Further keys that a `config.json` must have, as transformers has no fitting default."""
    has_input_bias: ClassVar[bool] = False
    """True if the projections to queries, keys and values always have a bias."""
    has_query_key_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in _REQUIRED_KEYS.values():
            check_integer(name, getattr(self, name))
        for name in ("num_key_value_heads", "head_dim", "max_length"):
            check_integer(name, getattr(self, name), default=1)
        for name in ("tie_word_embeddings", "use_attention_bias", "use_feed_forward_bias"):
            check_boolean(name, getattr(self, name, False))
        for name in ("epsilon", "initializer_range"):
            check_number(name, getattr(self, name), minimum=0)
        check_number("attention_dropout", self.attention_dropout, minimum=0, below=1)
        if self.rope_scaling is not None:
            scaling = check_scaling(self.rope_scaling, "rope_scaling")
            object.__setattr__(self, "rope_scaling", scaling)
        check_token_ids(self)
        if self.num_heads % (self.num_key_value_heads or self.num_heads):
            raise InvalidInputError(
                f"`num_key_value_heads` must divide `num_heads`, received "
                f"{self.num_key_value_heads} and {self.num_heads}."
            )
        if self.head_dim is None and self.hidden_dim % self.num_heads:
            raise InvalidInputError(
                f"Without a `head_dim`, `num_heads` must divide `hidden_dim`, received "
                f"{self.num_heads} and {self.hidden_dim}."
            )
        self._check_windows()

    def _check_windows(self) -> None:
        types = getattr(self, "layer_types", None)
        window = check_integer("sliding_window", getattr(self, "sliding_window", None), default=0)
        if types is None:
            return
        if isinstance(types, str) or len(types) != self.num_layers or set(types) - {*LAYER_TYPES}:
            raise InvalidInputError(
                f"`layer_types` must be one of {', '.join(LAYER_TYPES)} for each of the "
                f"{self.num_layers} layers, received {types!r}."
            )
        object.__setattr__(self, "layer_types", tuple(types))  # JSON returns lists.
        if _SLIDING in types and not window:
            raise InvalidInputError(
                f"`sliding_window` must be a positive integer, as `layer_types` has "
                f"{_SLIDING!r}; received None."
            )

    def attention_arguments(self, index: int) -> dict[str, Any]:
        """Returns the arguments of the attention of a layer.

        Args:
            index: integer. The index of the layer, from 0.
        """
        types = getattr(self, "layer_types", None)
        is_sliding = types is not None and types[index] == _SLIDING
        use_bias = getattr(self, "use_attention_bias", False)
        return {
            "num_heads": self.num_heads,
            "head_dim": self.head_dim or self.hidden_dim // self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "use_bias": use_bias or self.has_input_bias,
            "use_output_bias": use_bias,
            "use_query_key_norm": self.has_query_key_norm,
            "sliding_window": getattr(self, "sliding_window", None) if is_sliding else None,
            "dropout": self.attention_dropout,
            "epsilon": self.epsilon,
        }

    @classmethod
    def from_checkpoint_config(cls, values: Mapping[str, Any]) -> Self:
        """Returns the config that the `config.json` of a checkpoint describes.

        Args:
            values: dict. The content of the file.

        Raises:
            InvalidInputError: The file belongs to another model, a key is unknown or missing, or a
                value is not supported or out of its range.
        """
        names = {**_REQUIRED_KEYS, **_OPTIONAL_KEYS, **cls.own_keys}
        has_windows = "sliding_window" in cls.own_keys
        check_checkpoint_value(values, "model_type", allowed=(cls.family.model_type,))
        switches = _WINDOW_SWITCHES if has_windows else ()
        check_keys(values, [*names, *_OTHER_KEYS, *_FIXED_VALUES, *switches])
        check_required_keys(values, [*_REQUIRED_KEYS, *cls.required_keys])
        for name, allowed in _FIXED_VALUES.items():
            check_checkpoint_value(values, name, allowed=allowed)
        arguments = {field: values[key] for key, field in names.items() if key in values}
        # A null value stands for our default.
        arguments = {field: value for field, value in arguments.items() if value is not None}
        theta, scaling = read_rope(values)
        arguments |= {"rope_max_wavelength": theta, "rope_scaling": scaling}
        if has_windows:
            arguments |= _read_windows(values)
        return cls(**arguments)

    def to_checkpoint_config(self) -> dict[str, Any]:
        """Returns the `config.json` from which transformers makes the same model."""
        names = {**_REQUIRED_KEYS, **_OPTIONAL_KEYS, **self.own_keys}
        values = {key: getattr(self, field) for key, field in names.items()}
        if self.max_length is None:
            del values["max_position_embeddings"]
        values["num_key_value_heads"] = self.num_key_value_heads or self.num_heads
        values["head_dim"] = self.head_dim or self.hidden_dim // self.num_heads
        if "layer_types" in values:
            values["use_sliding_window"] = values["sliding_window"] is not None
            values["layer_types"] = values["layer_types"] or (_FULL,) * self.num_layers
        return {
            "architectures": [self.family.architectures[0]],
            "model_type": self.family.model_type,
            "hidden_act": "silu",
            "rope_theta": self.rope_max_wavelength,
            "rope_scaling": None if self.rope_scaling is None else dict(self.rope_scaling),
            **{key: list(x) if isinstance(x, tuple) else x for key, x in values.items()},
        }


def _read_windows(values: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the sliding windows of Qwen from a `config.json`."""
    window, types = values.get("sliding_window", _WINDOW_TOKENS), values.get("layer_types")
    if not values.get("use_sliding_window") or window is None:
        window = None
    elif types is None:
        first = values.get("max_window_layers", _FIRST_WINDOW_LAYER)
        indices = range(values["num_hidden_layers"])
        types = [_SLIDING if index >= first else _FULL for index in indices]
    if types is None or {*types} == {_FULL}:
        window = types = None
    return {"sliding_window": window, "layer_types": types}
