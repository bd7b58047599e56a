"""Where backbones and tasks begin: a Functional model that its config and its policy say all of."""

from dataclasses import asdict
from typing import Any, ClassVar, Self

import keras


class ConfigModel(keras.Model):
    """A Functional model that is made from a config, a frozen dataclass, and a dtype policy.

    A subclass names its `config_class`, takes `config` and `dtype` in its `__init__`, and sets both
    as `config` and `layers_policy`. It is then saved by these: `get_config` holds the config's
    fields and the policy, and `from_config` makes the model of them.
    """

    config_class: ClassVar[Any] = None
    """The config dataclass."""

    config: Any
    layers_policy: keras.DTypePolicy

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "trainable": self.trainable,
            "config": asdict(self.config),
            "dtype": keras.dtype_policies.serialize(self.layers_policy),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**{**config, "config": cls.config_class(**config["config"])})
