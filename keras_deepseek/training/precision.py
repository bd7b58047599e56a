"""Half precision inside the training step, and nowhere else.

The layers compute by another dtype policy for as long as one training step runs (on TensorFlow and
JAX: is traced). Their variables stay as they are, float32 master weights. Validation, callbacks,
checkpoints and everything after `fit` see the model by its own policy.
"""

import logging
from collections.abc import Callable
from typing import Any

import keras

from keras_deepseek.artifacts.errors import InvalidInputError, NotSupportedError
from keras_deepseek.backend.keras_internals import flatten_layers
from keras_deepseek.backend.keras_training import losses_in_float32
from keras_deepseek.backend.layer_precision import layers_to_switch, lent_policy

_logger = logging.getLogger(__name__)


def training_policy(
    precision: str | keras.DTypePolicy | None, fp16_enabled: bool, device_kind: str
) -> keras.DTypePolicy | None:
    """Returns the policy that the training step computes by; `None` for the model's own.

    Args:
        precision: `keras.DTypePolicy`, or its name, as in `"mixed_bfloat16"`.
        fp16_enabled: boolean. Half precision of the kind that fits the device: float16 on a GPU,
            bfloat16, which needs no loss scaling, on TPU and CPU.
        device_kind: string. `"cpu"`, `"gpu"` or `"tpu"`.

    Raises:
        InvalidInputError: The two contradict each other, or the policy is unknown.
    """
    if precision is None and not fp16_enabled:
        return None
    if precision is None:
        precision = "mixed_float16" if device_kind == "gpu" else "mixed_bfloat16"
        _logger.info(
            "fp16_enabled on %s: the training step computes by %s.", device_kind, precision
        )
        return keras.DTypePolicy(precision)
    if fp16_enabled:
        raise InvalidInputError(
            f"Give either fp16_enabled=True or precision={precision!r}, not both."
        )
    if isinstance(precision, keras.DTypePolicy):
        return precision
    try:
        return keras.DTypePolicy(precision)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(
            f"Unknown precision {precision!r}: expected a Keras dtype policy, as in "
            "'mixed_bfloat16', 'mixed_float16' or 'float32'."
        ) from error


def with_loss_scaling(
    optimizer: keras.optimizers.Optimizer, policy: keras.DTypePolicy | None
) -> keras.optimizers.Optimizer:
    """Returns the optimizer, with dynamic loss scaling where the policy computes in float16."""
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if policy is None or policy.compute_dtype != "float16" or scales:
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


def step_in_precision(
    model: keras.Model, policy: keras.DTypePolicy, train_step: Callable[..., Any]
) -> Callable[..., Any]:
    """Returns a training step whose layers compute by another policy than their own.

    Args:
        model: `keras.Model`.
        policy: The policy of the step.
        train_step: The step, as Keras takes it.

    Raises:
        InvalidInputError: When it is called, if the model's weights are not of the policy's
            variable dtype.
        NotSupportedError: When it is called, if a layer is quantized in int8 and the policy
            computes in float16.
    """
    layers: list[keras.Layer] = []

    def step(*arguments: Any) -> Any:
        if not layers:  # Now, not earlier: the first step finds every layer built.
            layers.extend(_layers_to_switch(model, policy))
        with lent_policy(layers, policy), losses_in_float32(model):
            return train_step(*arguments)

    return step


def _layers_to_switch(model: keras.Model, policy: keras.DTypePolicy) -> list[keras.Layer]:
    """Returns the layers that `policy` is for."""
    for layer in flatten_layers(model):
        if layer.quantization_mode == "int8" and policy.compute_dtype == "float16":
            raise NotSupportedError(
                f"Layer {layer.name!r} is quantized in int8, and Keras computes none such in "
                f"float16, as {policy.name!r} asks for. Train by precision='mixed_bfloat16', or by "
                "the model's own."
            )
        if layer.quantization_mode is not None:
            continue
        if layer.variable_dtype != policy.variable_dtype and layer.weights:
            raise InvalidInputError(
                f"Layer {layer.name!r} has {layer.variable_dtype} weights; training by "
                f"{policy.name!r} needs {policy.variable_dtype} ones. Build the model with that "
                "dtype, or choose another precision."
            )
    return layers_to_switch(model, includes_quantized=True)
