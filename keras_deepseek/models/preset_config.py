"""The base class of model configs, which have presets and can be saved as JSON."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from types import MappingProxyType
from typing import Any, ClassVar, Self

from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.models.checkpoints.checkpoint_config import check_keys

_RESERVED_KEYS = ("architectures", "dtype", "quantization_config")
"""Keys that `PresetModel` itself writes to a `config.json` and reads from it."""


class PresetConfig:
    """A model config with named presets. A subclass is a dataclass and may set `presets`.

    The keys of a `config.json` are the names of the fields. A model family that `transformers` also
    has uses the keys of `transformers`.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    """The arguments of each named size, except for those that the user has to give."""

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """Returns the config of a named size.

        Args:
            name: string. One of `presets`, such as `"tiny"`, which every family has.
            **overrides: Further arguments. They take precedence over those of the preset.

        Raises:
            InvalidInputError: There is no such preset, a required argument is missing, or a value
                is out of its range.
        """
        if name not in cls.presets:
            raise InvalidInputError(unknown_name_message("preset", name, cls.presets))
        arguments = {**cls.presets[name], **overrides}
        missing = _missing_names(cls, arguments)
        if missing:
            raise InvalidInputError(
                f"The preset {name!r} of {cls.__name__} has no value for {', '.join(missing)}: "
                f"give it too, as in from_preset({name!r}, {missing[0]}=...)."
            )
        return cls(**arguments)

    @classmethod
    def from_checkpoint_config(cls, config: Mapping[str, Any], /) -> Self:
        """Returns the config that a `config.json` describes.

        JSON has no tuples, so a subclass with tuple fields converts lists.

        Args:
            config: dict. The content of the file.

        Raises:
            InvalidInputError: The config has an unknown key, lacks a required one, or has a value
                out of its range.
        """
        names = [field.name for field in fields(_as_dataclass(cls))]
        check_keys(config, names)
        missing = _missing_names(cls, config)
        if missing:
            raise InvalidInputError(
                f"The config of the checkpoint lacks {', '.join(map(repr, missing))}, for which "
                f"{cls.__name__} has no default. Add the values that the model was made with."
            )
        arguments = {name: config[name] for name in names if name in config}
        try:
            return cls(**arguments)
        except TypeError as error:  # A string for a number, or a number for a list.
            raise InvalidInputError(
                f"The config of the checkpoint has a value of a type that {cls.__name__} does not "
                f"take: {error}. Received {arguments}."
            ) from error

    def to_checkpoint_config(self) -> dict[str, Any]:
        """Returns the content of a `config.json` for this config.

        Raises:
            InvalidInputError: A field has a name that is reserved in such a file.
        """
        config = asdict(_as_dataclass(self))
        for name in _RESERVED_KEYS:
            if name in config:
                raise InvalidInputError(
                    f"{type(self).__name__} has a field {name!r}, which is a reserved key in a "
                    "config.json. Give it another name."
                )
        return config


def _missing_names(config_class: type[PresetConfig], arguments: Mapping[str, Any]) -> list[str]:
    return [
        field.name
        for field in fields(_as_dataclass(config_class))
        if field.name not in arguments
        and field.default is MISSING
        and field.default_factory is MISSING
    ]


def _as_dataclass(config: Any) -> Any:
    """Returns the argument, typed so that mypy accepts it as a dataclass."""
    return config


def check_token_ids(config: Any) -> None:
    """Checks a config's start, end and padding token ids; turns a list of end ids into a tuple."""
    for name in ("start_token_id", "pad_token_id"):
        check_integer(name, getattr(config, name), minimum=0, default=0)
    ends = config.end_token_id
    if not isinstance(ends, Iterable) or isinstance(ends, str | bytes):
        check_integer("end_token_id", ends, minimum=0, default=0)
        return
    tokens = tuple(check_integer("end_token_id", token, minimum=0) for token in ends)
    object.__setattr__(config, "end_token_id", tokens)  # JSON returns lists.
