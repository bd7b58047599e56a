"""What the configs of all families have beside their fields: sizes that have a name."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from keras_deepseek.artifacts.errors import InvalidInputError, unknown_name_message


class PresetConfig:
    """A config that can be had by name; a subclass is a dataclass and names its `presets`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    """The arguments of each size that has a name, but for those that it leaves open."""

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """Returns the config of a size that has a name.

        Args:
            name: string. One of `presets`, as `"tiny"`, which every family has.
            **overrides: Arguments beside those of the preset, or in their place.

        Raises:
            InvalidInputError: There is no such preset, or a value is out of its range.
        """
        if name not in cls.presets:
            raise InvalidInputError(unknown_name_message("preset", name, cls.presets))
        return cls(**{**cls.presets[name], **overrides})
