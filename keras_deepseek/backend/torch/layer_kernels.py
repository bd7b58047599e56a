"""Keras's pooling and normalization in one memory layout, and by fewer operations.

Before each pooling and transposed convolution, Keras copies its channels-last input to the order in
which channels come first. From there on a step mixes both orders, and reads the slower one. Here a
view with the channels first takes the place of the copy: the memory stays as it is. A normalization
is one function with its gradient (`normalization.py`).

Each form has to prove itself (`proved_forms.py`). It runs for float32 on a CPU.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import torch
from torch.nn import functional

from keras_deepseek.backend.keras_private.replaced_methods import replaced_methods
from keras_deepseek.backend.keras_private.torch_functions import torch_functions
from keras_deepseek.backend.torch.normalization import normalize, scale_and_shift
from keras_deepseek.backend.torch.proved_forms import Values, is_plain, run_proved

_MAX_POOLS = {3: functional.max_pool1d, 4: functional.max_pool2d, 5: functional.max_pool3d}
"""Functions by the number of axes of their inputs."""


def use_layer_kernels() -> AbstractContextManager[None]:
    """Returns a context manager in which Keras's layers run by these forms in this context."""
    return replaced_methods(
        {
            **torch_functions(
                max_pool=_max_pool,
                average_pool=_pool,
                adaptive_max_pool=_adaptive_pool,
                adaptive_average_pool=_adaptive_pool,
                conv_transpose=_conv_transpose,
            ),
            (keras.layers.BatchNormalization, "call"): _normalize_batch,
            (keras.layers.GroupNormalization, "call"): _normalize_groups,
        }
    )


def _max_pool(
    original: Callable[..., Any],
    inputs: Any,
    pool_size: Any,
    strides: Any = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> Any:
    lefts = _find_left_padding(inputs, pool_size, strides, padding)

    def pool(view: Any) -> Any:
        # Keras repeats the numbers at the border where PyTorch's windows may end there.
        size = _standardize(pool_size, view.ndim - 2)
        steps = size if strides is None else _standardize(strides, view.ndim - 2)
        return _MAX_POOLS[view.ndim](view, size, steps, lefts, ceil_mode=True)

    faster = None if lefts is None else pool
    arguments = {"pool_size": pool_size, "strides": strides, "padding": padding}
    return _in_one_order(original, arguments, [inputs], data_format, faster)


def _pool(
    original: Callable[..., Any],
    inputs: Any,
    pool_size: Any,
    strides: Any = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> Any:
    arguments = {"pool_size": pool_size, "strides": strides, "padding": padding}
    return _in_one_order(original, arguments, [inputs], data_format)


def _adaptive_pool(
    original: Callable[..., Any], inputs: Any, output_size: Any, data_format: str | None = None
) -> Any:
    return _in_one_order(original, {"output_size": output_size}, [inputs], data_format)


def _conv_transpose(
    original: Callable[..., Any],
    inputs: Any,
    kernel: Any,
    strides: Any = 1,
    padding: str = "valid",
    output_padding: Any = None,
    data_format: str | None = None,
    dilation_rate: Any = 1,
) -> Any:
    arguments = {
        "strides": strides,
        "padding": padding,
        "output_padding": output_padding,
        "dilation_rate": dilation_rate,
    }
    return _in_one_order(original, arguments, [inputs, kernel], data_format)


def _in_one_order(
    original: Callable[..., Any],
    arguments: dict[str, Any],
    tensors: Sequence[Any],
    data_format: str | None,
    faster: Callable[[Any], Any] | None = None,
) -> Any:
    """Returns what a function of Keras computes, from a view of its inputs with the channels first.

    Args:
        original: The function, of tensors, further arguments and a data format.
        arguments: The further arguments.
        tensors: Its inputs and further tensors.
        data_format: The data format of the inputs.
        faster: Function of the view in the place of `original`. Defaults to `None`.
    """

    def by_keras(values: Values) -> list[Any]:
        return [original(*values, **arguments, data_format=data_format)]

    def by_view(values: Values) -> list[Any]:
        view, *others = values[0].movedim(-1, 1), *values[1:]
        if faster is None:
            outputs = original(view, *others, **arguments, data_format="channels_first")
        else:
            outputs = faster(view)
        return [outputs.movedim(1, -1)]

    tensors = [keras.ops.convert_to_tensor(tensor) for tensor in tensors]
    is_last = (data_format or keras.config.image_data_format()) == "channels_last"
    results = None
    if is_last and _can_run(*tensors):
        results = run_proved(original, repr(arguments), tensors, by_keras, by_view)
    return (by_keras(tensors) if results is None else results)[0]


def _find_left_padding(inputs: Any, pool_size: Any, strides: Any, padding: str) -> list[int] | None:
    """Returns the padding on the left by which windows that may end at the border are "same".

    `None`: the padding is not "same", or no such windows are.
    """
    if padding != "same":
        return None
    lengths = inputs.shape[1:-1]
    sizes = _standardize(pool_size, len(lengths))
    steps = sizes if strides is None else _standardize(strides, len(lengths))
    lefts = []
    for length, size, step in zip(lengths, sizes, steps, strict=True):
        num_windows = -(-length // step)
        total = max(0, (num_windows - 1) * step + size - length)
        left = total // 2
        if -(-(length + 2 * left - size) // step) + 1 != num_windows:
            return None
        lefts.append(left)
    return lefts


def _standardize(size: Any, num_axes: int) -> tuple[int, ...]:
    return (size,) * num_axes if isinstance(size, int) else tuple(size)


def _normalize_batch(
    original: Callable[..., Any],
    layer: Any,
    inputs: Any,
    training: Any = None,
    mask: Any = None,
) -> Any:
    """Runs `BatchNormalization` with a gradient of its own."""
    is_known = type(layer) is keras.layers.BatchNormalization and not (
        layer.renorm or layer.synchronized
    )
    if mask is not None or not (is_known and _can_normalize(layer, inputs)):
        return original(layer, inputs, training=training, mask=mask)
    uses_batch = bool(training and layer.trainable)
    statistics = [layer.moving_mean, layer.moving_variance]
    assigned = statistics if uses_batch else []

    def by_keras(values: Values) -> list[Any]:
        with _weights_of(layer, statistics, values) as scope:
            outputs = original(layer, values[0], training=training)
        return [outputs, *(scope.get_current_value(variable).detach() for variable in assigned)]

    def faster(values: Values) -> list[Any]:
        x, *moving = values[:3]
        gamma, beta = _name_weights(layer, values[3:])
        if not uses_batch:
            mean, variance = moving
            return [scale_and_shift(x, gamma, beta, mean, variance, layer.epsilon)]
        rows = x.reshape(1, -1, x.shape[-1])
        outputs, *of_batch = normalize(rows, gamma, beta, None, layer.epsilon)
        new = [
            torch.lerp(old, value.view(-1), 1 - layer.momentum)
            for old, value in zip(moving, of_batch, strict=True)
        ]
        return [outputs.view(x.shape), *new]

    results = run_proved(
        layer,
        (layer.epsilon, layer.momentum, uses_batch),
        [inputs, *_tensors_of(layer, statistics)],
        by_keras,
        faster,
        lambda: _find_tolerance(inputs.reshape(-1, inputs.shape[-1]), 0, layer.epsilon),
    )
    if results is None:
        return original(layer, inputs, training=training)
    outputs, *new_statistics = results
    for variable, value in zip(assigned, new_statistics, strict=True):
        variable.assign(value)
    return outputs


def _normalize_groups(original: Callable[..., Any], layer: Any, inputs: Any) -> Any:
    """Runs `GroupNormalization` with a gradient of its own."""
    is_known = type(layer) is keras.layers.GroupNormalization
    if not (is_known and _can_normalize(layer, inputs)):
        return original(layer, inputs)

    def by_keras(values: Values) -> list[Any]:
        with _weights_of(layer, [], values):
            return [original(layer, values[0])]

    def faster(values: Values) -> list[Any]:
        x, weights = values[0], _name_weights(layer, values[1:])
        positions = x.reshape(len(x), -1, x.shape[-1])
        outputs, *_ = normalize(positions, *weights, layer.groups, layer.epsilon)
        return [outputs.view(x.shape)]

    def find_tolerance() -> float:
        groups = inputs.reshape(len(inputs), -1, layer.groups, inputs.shape[-1] // layer.groups)
        return _find_tolerance(groups, (1, 3), layer.epsilon)

    settings = (layer.epsilon, layer.groups)
    values = [inputs, *_tensors_of(layer, [])]
    results = run_proved(layer, settings, values, by_keras, faster, find_tolerance)
    return original(layer, inputs) if results is None else results[0]


def _find_tolerance(x: Any, axes: Any, epsilon: float) -> float:
    """Returns the tolerance of a normalization, in units of rounding.

    Keras subtracts the square of a mean from the mean of squares, and loses digits where the mean
    is large beside the deviation.
    """
    variance, mean = torch.var_mean(x.detach(), axes, correction=0)
    return 100 * float(((mean.square() + variance) / (variance + epsilon)).max())


def _can_run(*tensors: Any) -> bool:
    return (
        all(is_plain(tensor) for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
        and torch.autograd.forward_ad._current_level < 0  # noqa: SLF001
    )


def _can_normalize(layer: Any, inputs: Any) -> bool:
    return (
        layer.compute_dtype == "float32"
        and layer.axis in (-1, inputs.ndim - 1)
        and _can_run(inputs, *_tensors_of(layer, []))
    )


def _tensors_of(layer: Any, variables: Sequence[Any]) -> list[Any]:
    """Returns the tensors of variables, and of the scale and the offset that a layer has."""
    weights = [weight for weight in (layer.gamma, layer.beta) if weight is not None]
    return [keras.ops.convert_to_tensor(variable) for variable in (*variables, *weights)]


def _weights_of(layer: Any, variables: Sequence[Any], values: Values) -> keras.StatelessScope:
    """Returns a scope in which the variables of a layer have the values behind its inputs."""
    weights = [weight for weight in (layer.gamma, layer.beta) if weight is not None]
    return keras.StatelessScope(zip((*variables, *weights), values[1:], strict=True))


def _name_weights(layer: Any, weights: Sequence[Any]) -> tuple[Any, Any]:
    """Returns the scale and the offset, with `None` for one that a layer lacks."""
    remaining = iter(weights)
    gamma, beta = (
        None if weight is None else next(remaining) for weight in (layer.gamma, layer.beta)
    )
    return gamma, beta
