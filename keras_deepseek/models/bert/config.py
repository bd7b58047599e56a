"""The config class of BERT models, and the presets of the family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.models.checkpoints.checkpoint_config import check_keys
from keras_deepseek.models.encoder.transformer_encoder import read_activation
from keras_deepseek.models.family import Family
from keras_deepseek.models.preset_config import PresetConfig

_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_dim": 128, "num_layers": 2, "num_heads": 2, "intermediate_dim": 512},
    "mini": {"hidden_dim": 256, "num_layers": 4, "num_heads": 4, "intermediate_dim": 1024},
    "small": {"hidden_dim": 512, "num_layers": 4, "num_heads": 8, "intermediate_dim": 2048},
    "medium": {"hidden_dim": 512, "num_layers": 8, "num_heads": 8, "intermediate_dim": 2048},
    "base": {"hidden_dim": 768, "num_layers": 12, "num_heads": 12, "intermediate_dim": 3072},
    "large": {"hidden_dim": 1024, "num_layers": 24, "num_heads": 16, "intermediate_dim": 4096},
}

BERT = Family(
    model_type="bert",
    architectures=("BertForMaskedLM", "BertForPreTraining"),
    presets=_PRESETS,
)


_NAMES = {
    "vocabulary_size": "vocab_size",
    "hidden_dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_dim": "intermediate_size",
    "activation": "hidden_act",
    "max_length": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "epsilon": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_word_embeddings",
}
"""The keys of a `config.json`, by our argument names."""

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_approximate",
    "gelu_pytorch_tanh": "gelu_approximate",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}

_FIXED_VALUES = {
    "model_type": BERT.model_type,
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "position_embedding_type": "absolute",
    "chunk_size_feed_forward": 0,
}
"""Keys that change the model, with the only value that is supported."""

_IGNORED_KEYS = {
    "classifier_dropout",
    "directionality",
    "output_past",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
}
"""Keys of BERT that do not change a masked language model."""


@dataclass(frozen=True)
class BertConfig(PresetConfig):
    """The sizes of a `BertBackbone` and a `BertMaskedLM`; the defaults are those of BERT base.

    `from_preset` has `"tiny"`, `"mini"`, `"small"`, `"medium"`, `"base"` and `"large"`.

    Args:
        vocabulary_size: integer. Number of tokens. Defaults to `30522`.
        hidden_dim: integer. Size of the hidden states; `num_heads` divides it. Defaults to `768`.
        num_layers: integer. Number of blocks. Defaults to `12`.
        num_heads: integer. Number of attention heads. Defaults to `12`.
        intermediate_dim: integer. Hidden size of the feed-forward networks. Defaults to `3072`.
        activation: string. `"gelu"`, `"gelu_approximate"`, `"relu"`, `"silu"` or `"tanh"`. Defaults
            to `"gelu"`.
        max_length: integer. Number of tokens of the longest sequence. Defaults to `512`.
        num_segments: integer. Number of segment types. Defaults to `2`.
        dropout: float. Dropout rate of hidden states. Defaults to `0.1`.
        attention_dropout: float. Dropout rate of attention weights. Defaults to `0.1`.
        epsilon: float. Added to the variance in the norms. Defaults to `1e-12`.
        initializer_range: float. Standard deviation of the initial weights. Defaults to `0.02`.
        tie_word_embeddings: boolean. Whether the output projection uses the token embedding.
            Defaults to `True`.

    Raises:
        InvalidInputError: A value is out of its range. The message names it.

    Example:

    >>> from keras_deepseek.models import BertConfig
    >>> BertConfig.from_preset("tiny", vocabulary_size=1000).hidden_dim
    128
    """

    vocabulary_size: int = 30522
    hidden_dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_dim: int = 3072
    activation: str = "gelu"
    max_length: int = 512
    num_segments: int = 2
    dropout: float = 0.1
    attention_dropout: float = 0.1
    epsilon: float = 1e-12
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    family: ClassVar[Family] = BERT
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = BERT.presets

    def __post_init__(self) -> None:
        for name in (
            "vocabulary_size",
            "hidden_dim",
            "num_layers",
            "num_heads",
            "intermediate_dim",
            "max_length",
            "num_segments",
        ):
            check_integer(name, getattr(self, name))
        for name in ("dropout", "attention_dropout"):
            check_number(name, getattr(self, name), minimum=0, below=1)
        check_number("epsilon", self.epsilon, minimum=0)
        check_number("initializer_range", self.initializer_range, above=0)
        check_boolean("tie_word_embeddings", self.tie_word_embeddings)
        read_activation(self.activation)
        if self.hidden_dim % self.num_heads:
            raise InvalidInputError(
                f"`num_heads` must divide `hidden_dim`, received num_heads={self.num_heads} and "
                f"hidden_dim={self.hidden_dim}."
            )

    @classmethod
    def from_checkpoint_config(cls, config: Mapping[str, Any]) -> "BertConfig":
        """Returns the config that a Hugging Face `config.json` describes.

        Args:
            config: dict. The content of the file.

        Raises:
            InvalidInputError: The file belongs to another model, has an unknown key, or a value
                that is not supported.
        """
        for key, value in _FIXED_VALUES.items():
            if config.get(key) not in (value, None):
                raise InvalidInputError(
                    f"The checkpoint's config has {key}={config[key]!r}, and only {value!r} is "
                    "supported."
                )
        check_keys(config, [*_NAMES.values(), *_FIXED_VALUES, *_IGNORED_KEYS])
        arguments = {name: config[key] for name, key in _NAMES.items() if key in config}
        if "activation" in arguments:
            if arguments["activation"] not in _ACTIVATIONS:
                raise InvalidInputError(
                    unknown_name_message("hidden_act", arguments["activation"], _ACTIVATIONS)
                )
            arguments["activation"] = _ACTIVATIONS[arguments["activation"]]
        return cls(**arguments)

    def to_checkpoint_config(self) -> dict[str, Any]:
        """Returns the content of a Hugging Face `config.json` for this config."""
        config = {key: getattr(self, name) for name, key in _NAMES.items()}
        named = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
        config["hidden_act"] = named[self.activation]
        return {
            "architectures": [BERT.architectures[0]],
            "model_type": BERT.model_type,
            **config,
        }
