"""The base class of backbones and tasks, which are built from a config and a dtype policy.

Keras writes the list of quantized layers into the config of each layer. A `ConfigModel` builds its
layers from its own config, so its `.keras` file has to hold the list separately.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, ClassVar, Self

import keras

from keras_deepseek.backend.keras_private.functional_graphs import CloneCheckedModel
from keras_deepseek.backend.keras_private.quantization import (
    forget_parameters,
    frozen_objects,
    layers_to_quantize,
)
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.layers.moe.expert_kernels import ExpertKernels
from keras_deepseek.layers.quantized_layers import describe_quantized, quantize_again
from keras_deepseek.models.checkpoints.mapped_weights import MappedWeights


class ConfigModel(CloneCheckedModel):
    """A Functional model that is built from a config, a frozen dataclass, and a dtype policy.

    A subclass sets its `config_class`, takes `config` and `dtype` in its `__init__`, and sets both
    as `config` and `layers_policy`. It is saved by them: `get_config` returns the config's fields,
    the policy, and the quantized layers, and `from_config` builds the model from these. The policy
    is also the model's `dtype_policy`, by which Keras scales a loss in float16.
    """

    config_class: ClassVar[Any] = None
    """The config dataclass."""

    config: Any

    mapped_weights = MappedWeights()
    """The weights that are views of files. `from_preset` gives a model and those in it its own."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        for config in args[:1] or [kwargs[name] for name in ("config",) if name in kwargs]:
            _check_config(cls, config)
        model: Self = super().__new__(cls, *args, **kwargs)
        return model

    @property
    def layers_policy(self) -> keras.DTypePolicy:
        """The dtype policy of the layers."""
        return self._layers_policy

    @layers_policy.setter
    def layers_policy(self, policy: keras.DTypePolicy) -> None:
        self._layers_policy = policy
        own_policy: keras.DTypePolicy = self.dtype_policy  # type: ignore[has-type]
        maps = [
            isinstance(dtype_policy, keras.dtype_policies.DTypePolicyMap)
            for dtype_policy in (own_policy, policy)
        ]
        # Keras quantizes a model by some policies, and adds the model to a shared policy map.
        if policy.quantization_mode is None and not any(maps):
            self.dtype_policy = policy

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        check_ids(self.inputs, inputs)
        self.mapped_weights.check()
        if training:
            self.mapped_weights.copy_trainable()
        return super().call(inputs, training=training, mask=mask)

    def get_weights(self) -> list[Any]:
        self.mapped_weights.check()
        return list(super().get_weights())

    def save_weights(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> None:
        self.mapped_weights.check()
        super().save_weights(filepath, overwrite=overwrite, **kwargs)

    def quantize(self, mode: str | None = None, config: Any = None, **kwargs: Any) -> None:
        """Quantizes the weights in place, as `keras.Model.quantize` does, experts included.

        It raises an error before it changes any layer if the `block_size` of int4 does not divide
        the rows of all experts' kernels.

        Args:
            mode: string or `None`. `"int8"` or `"int4"`, or another mode of Keras, in which the
                experts stay as they are. `None` takes that of `config`. Defaults to `None`.
            config: `keras.quantizers.QuantizationConfig`, or `None` for the default one of the
                mode. Defaults to `None`.
            **kwargs: Further arguments of `keras.Model.quantize`, such as `filters`.
        """
        if mode == "int4" and config is None:
            config = keras.quantizers.Int4QuantizationConfig()
        layers = layers_to_quantize(self, kwargs.pop("filters", None))
        for layer in layers:
            if isinstance(layer, ExpertKernels) and config is not None and config.mode == "int4":
                layer.check_quantization("int4", config)
        self.mapped_weights.copy_all()
        forget_parameters(self)
        with frozen_objects():
            super().quantize(mode, config=config, filters=lambda layer: layer in layers, **kwargs)

    def get_config(self) -> dict[str, Any]:
        quantized = describe_quantized(self)
        return {
            "name": self.name,
            "trainable": self.trainable,
            "config": asdict(self.config),
            "dtype": keras.dtype_policies.serialize(self.layers_policy),
            **({"quantized_layers": quantized} if quantized else {}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        arguments = {**config, "config": cls.config_class(**config["config"])}
        quantized = arguments.pop("quantized_layers", {})
        model = cls(**arguments)
        quantize_again(model, quantized)
        return model


def _check_config(model_class: type[ConfigModel], config: Any) -> None:
    """Raises an error if a model gets the config of another class, even one with equal fields."""
    expected = model_class.config_class
    if expected is None or isinstance(config, expected):
        return
    sizes, name = getattr(expected, "presets", {}), expected.__name__
    is_short = config is None or isinstance(config, str | int | float)
    received = repr(config) if is_short else f"a {type(config).__name__}"
    hint = f", as in {name}.from_preset({next(iter(sizes))!r})" if sizes else ""
    if isinstance(config, str) and config in sizes:
        hint = f": write {name}.from_preset({config!r})"
    raise InvalidInputError(
        f"`config` of {model_class.__name__} must be a {name}, received {received}{hint}."
    )


def check_ids(declared: Iterable[keras.KerasTensor], inputs: Any) -> None:
    """Raises an error if token or item ids are floats, which Keras would silently truncate."""
    if not isinstance(inputs, dict):
        return
    for tensor in declared:
        received = str(getattr(inputs.get(tensor.name), "dtype", tensor.dtype))
        is_mask = tensor.name.endswith("mask")  # Zeros and ones are exact in any dtype.
        if "int" in tensor.dtype and "float" in received and not is_mask:
            raise InvalidInputError(
                f"`{tensor.name}` must be integers, received an array of {received}. If its "
                f"numbers are whole, cast it with ops.cast({tensor.name}, 'int32')."
            )


def read_policy(dtype: Any) -> keras.DTypePolicy:
    """Returns the dtype policy for the layers of a model.

    `dtype` is a string, a policy, the config of one, or `None` for the global policy. A policy that
    quantizes is rejected.
    """
    try:
        policy: keras.DTypePolicy = keras.dtype_policies.get(dtype)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"`dtype` must be a dtype policy, as in 'bfloat16' or 'mixed_float16'; received "
            f"{dtype!r}."
        ) from error
    if policy.quantization_mode is not None:
        raise NotSupportedError(
            f"`dtype` can't be {policy.name!r}, which quantizes: weights must be initialized or "
            "read before they are quantized. Use another policy, as in dtype='bfloat16', and then "
            "call `model.quantize('int8')`."
        )
    return policy
