"""Half precision inside the training step only.

The layers have another dtype policy only while a training step runs (on TensorFlow and JAX: while
it is traced). Their variables do not change: they are the float32 master weights. Validation,
callbacks, checkpoints and everything after `fit` use the model's own policy.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_deepseek.backend.keras_private.layer_precision import (
    find_exact_inputs,
    layers_to_switch,
    temporary_policy,
)
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.loss_and_metrics import losses_in_float32
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.training.step.named_layers import are_names, find_named_layers

_POLICIES = {"bfloat16": "mixed_bfloat16", "float16": "mixed_float16", "float32": "float32"}
"""The dtype policies by the precision that layers compute in. Weights are float32 in each."""


def check_precision(
    precision: str | keras.DTypePolicy | None, fp16_enabled: bool, float32_layers: Sequence[str]
) -> None:
    """Raises an error if the arguments for half precision contradict each other."""
    if not are_names(float32_layers):
        raise InvalidInputError(
            "`float32_layers` must be a list of layers' names, as in ['fourier_*']; received "
            f"{float32_layers!r}."
        )
    if precision is None and not fp16_enabled and float32_layers:
        raise InvalidInputError(
            "`float32_layers` needs half precision: add fp16_enabled=True or precision='bfloat16'."
        )
    if precision is not None and fp16_enabled:
        raise InvalidInputError(
            f"Give either fp16_enabled=True or precision={precision!r}, not both."
        )
    if precision is not None:
        training_policy(precision, fp16_enabled, "cpu")


def training_policy(
    precision: str | keras.DTypePolicy | None, fp16_enabled: bool, device_kind: str
) -> keras.DTypePolicy | None:
    """Returns the dtype policy of the training step; `None` for the model's own.

    `fp16_enabled` means float16 on a GPU. On TPU and CPU it means bfloat16, which needs no loss
    scaling.
    """
    if precision is None and not fp16_enabled:
        return None
    if precision is None:
        return keras.DTypePolicy("mixed_float16" if device_kind == "gpu" else "mixed_bfloat16")
    if isinstance(precision, keras.DTypePolicy):
        return precision
    if precision not in _POLICIES:
        hint = ""
        if precision in _POLICIES.values():
            hint = f" Use precision={precision.removeprefix('mixed_')!r}: the weights stay float32."
        raise InvalidInputError(
            f"Unknown precision {precision!r}: expected 'bfloat16', 'float16' or 'float32', the "
            f"precision that layers compute in, or a keras.DTypePolicy.{hint}"
        )
    return keras.DTypePolicy(_POLICIES[precision])


_ADVICE = (
    "The step computes in {!r}. If a layer can't, for example because it transforms in float32, "
    "keep it in its own dtype: Trainer(..., float32_layers=['NAME'])."
)
_SLOW_ON_JAX_CPU = (
    keras.layers.RNN,
    keras.layers.Conv1D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3D,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
"""Layers that XLA computes slower in bfloat16 on a CPU, by 1.1 to 3 times, for some shapes 20."""


def is_slower_in_half(model: keras.Model, device_kind: str) -> bool:
    """Returns True if half precision would slow a model down, as for convolutions on JAX's CPU."""
    if keras.backend.backend() != "jax" or device_kind != "cpu":
        return False
    return any(isinstance(layer, _SLOW_ON_JAX_CPU) for layer in flatten_layers(model))


def with_loss_scaling(
    optimizer: keras.optimizers.Optimizer, policy: keras.DTypePolicy | None
) -> keras.optimizers.Optimizer:
    """Returns the optimizer, with dynamic loss scaling if the policy computes in float16."""
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if policy is None or policy.compute_dtype != "float16" or scales:
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


def step_in_precision(
    model: keras.Model,
    policy: keras.DTypePolicy,
    train_step: Callable[..., Any],
    float32_layers: Sequence[str] = (),
) -> Callable[..., Any]:
    """Wraps a training step, so that the model's layers compute by another dtype policy.

    Layers that match a pattern of `float32_layers`, and the layers inside them, keep their own
    policy.

    Raises:
        InvalidInputError: When the step is called, if the model's weights do not have the policy's
            variable dtype.
        NotSupportedError: When the step is called, if a layer is quantized in int8 and the policy
            computes in float16.
    """
    layers: list[keras.Layer] = []
    exact_inputs: list[keras.Layer] = []

    def step(*arguments: Any) -> Any:
        if not layers:  # In the first step, when every layer is built.
            layers.extend(_layers_to_switch(model, policy, float32_layers))
            exact_inputs.extend(find_exact_inputs(model))
        try:
            with (
                temporary_policy(layers, policy, exact_inputs=exact_inputs),
                losses_in_float32(model),
            ):
                return train_step(*arguments)
        except Exception as error:
            # Frameworks also call float16 "half".
            if any(word in str(error).lower() for word in ("float16", "half")):
                error.add_note(_ADVICE.format(policy.name))
            raise

    return step


def _layers_to_switch(
    model: keras.Model, policy: keras.DTypePolicy, float32_layers: Sequence[str]
) -> list[keras.Layer]:
    """Returns the layers that should compute by a dtype policy; raises an error if any can't."""
    for layer in flatten_layers(model):
        if layer.quantization_mode == "int8" and policy.compute_dtype == "float16":
            raise NotSupportedError(
                f"Layer {layer.name!r} is quantized in int8, and Keras can't compute such layers "
                f"in float16, as {policy.name!r} does. Use precision='bfloat16', or the "
                "model's own precision."
            )
        if layer.quantization_mode is not None:
            continue
        if layer.variable_dtype != policy.variable_dtype and layer.weights:
            raise InvalidInputError(
                f"Layer {layer.name!r} has {layer.variable_dtype} weights; training by "
                f"{policy.name!r} needs {policy.variable_dtype} weights. Build the model with that "
                "dtype, or choose another precision."
            )
    float32_ids = {
        id(layer)
        for named in find_named_layers(model, "float32_layers", float32_layers)
        for layer in flatten_layers(named)
    }
    layers = layers_to_switch(model, includes_quantized=True)
    return [layer for layer in layers if id(layer) not in float32_ids]
