"""What the configs of all families have beside their fields: sizes that have a name, and a file."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from types import MappingProxyType
from typing import Any, ClassVar, Self

from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.models.checkpoints.checkpoint_config import check_keys

_TAKEN = ("architectures", "dtype", "quantization_config")
"""What a `PresetModel` itself writes into a `config.json`, and reads there."""


class PresetConfig:
    """A config that can be had by name; a subclass is a dataclass and names its `presets`.

    In a `config.json` it is its fields by their own names. Families that `transformers` has too
    write its names in place of them.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    """The arguments of each size that has a name, but for those that it leaves open."""

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """Returns the config of a size that has a name.

        Args:
            name: string. One of `presets`, as `"tiny"`, which every family has.
            **overrides: Arguments beside those of the preset, or in their place.

        Raises:
            InvalidInputError: There is no such preset, it leaves a value open that is not given, or
                one is out of its range.
        """
        if name not in cls.presets:
            raise InvalidInputError(unknown_name_message("preset", name, cls.presets))
        given = {**cls.presets[name], **overrides}
        missing = _missing_names(cls, given)
        if missing:
            raise InvalidInputError(
                f"The preset {name!r} of {cls.__name__} leaves {', '.join(missing)} open: give it "
                f"too, as in from_preset({name!r}, {missing[0]}=...)."
            )
        return cls(**given)

    @classmethod
    def from_checkpoint_config(cls, config: Mapping[str, Any], /) -> Self:
        """Returns the config that a `config.json` says.

        Args:
            config: dict. What the file holds. JSON has no tuples: where a field is one, the class
                makes it of a list.

        Raises:
            InvalidInputError: It has a key that is not known, lacks one that has no default, or has
                a value that is out of range.
        """
        names = [field.name for field in fields(_as_dataclass(cls))]
        check_keys(config, names)
        missing = _missing_names(cls, config)
        if missing:
            raise InvalidInputError(
                f"The config of the checkpoint lacks {', '.join(map(repr, missing))}, which "
                f"{cls.__name__} has no default of. Add what the model was made with."
            )
        given = {name: config[name] for name in names if name in config}
        try:
            return cls(**given)
        except TypeError as error:  # A text in place of a number, or a number in place of a list.
            raise InvalidInputError(
                f"The config of the checkpoint has a value of another kind than {cls.__name__} "
                f"takes: {error}. It has {given}."
            ) from error

    def to_checkpoint_config(self) -> dict[str, Any]:
        """Returns what a `config.json` says of this config.

        Raises:
            InvalidInputError: A field has a name that such a file has for something else.
        """
        config = asdict(_as_dataclass(self))
        for name in _TAKEN:
            if name in config:
                raise InvalidInputError(
                    f"{type(self).__name__} has a field {name!r}, which means something else in a "
                    "config.json. Give it another name."
                )
        return config


def _missing_names(config_class: type[PresetConfig], given: Mapping[str, Any]) -> list[str]:
    return [
        field.name
        for field in fields(_as_dataclass(config_class))
        if field.name not in given and field.default is MISSING and field.default_factory is MISSING
    ]


def _as_dataclass(config: Any) -> Any:
    """Returns what is given: that subclasses are dataclasses, the types do not say."""
    return config
