"""Where backbones and tasks begin: a Functional model that its config and its policy say all of."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, ClassVar, Self

import keras

from keras_deepseek.artifacts.errors import InvalidInputError


class ConfigModel(keras.Model):
    """A Functional model that is made from a config, a frozen dataclass, and a dtype policy.

    A subclass names its `config_class`, takes `config` and `dtype` in its `__init__`, and sets both
    as `config` and `layers_policy`. It is then saved by these: `get_config` holds the config's
    fields and the policy, and `from_config` makes the model of them. The policy is the model's own,
    `dtype_policy`, as well, by which Keras scales a loss in float16.
    """

    config_class: ClassVar[Any] = None
    """The config dataclass."""

    config: Any

    @property
    def layers_policy(self) -> keras.DTypePolicy:
        """The dtype policy of the layers."""
        return self._layers_policy

    @layers_policy.setter
    def layers_policy(self, policy: keras.DTypePolicy) -> None:
        self._layers_policy = policy
        own: keras.DTypePolicy = self.dtype_policy  # type: ignore[has-type]
        maps = [isinstance(each, keras.dtype_policies.DTypePolicyMap) for each in (own, policy)]
        # Keras would quantize the model by some, and write the model into a map that others share.
        if policy.quantization_mode is None and not any(maps):
            self.dtype_policy = policy

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        _check_integers(self.inputs, inputs)
        return super().call(inputs, training=training, mask=mask)

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


def _check_integers(declared: Iterable[keras.KerasTensor], inputs: Any) -> None:
    """Says where ids are floating-point numbers, of which Keras would take the whole part."""
    if not isinstance(inputs, dict):
        return
    for each in declared:
        received = str(getattr(inputs.get(each.name), "dtype", each.dtype))
        is_mask = each.name.endswith("mask")  # Ones and zeros are the same in any dtype.
        if "int" in each.dtype and "float" in received and not is_mask:
            raise InvalidInputError(
                f"`{each.name}` must be integers, received an array of {received}. Cast it where "
                f"its numbers are whole, as by ops.cast({each.name}, 'int32')."
            )
