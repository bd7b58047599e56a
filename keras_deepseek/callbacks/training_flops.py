"""The floating-point operations of a training, and the most that a device can do."""

import re
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.layers import example_inputs
from keras_deepseek.checks import check_number

_PASSES = 3  # Forward, backward by inputs, and backward by weights: each costs the same.


def count_training_flops(model: keras.Model, x: Any = None) -> int | None:
    """Counts the floating-point operations of a training step.

    It counts matrix products, convolutions and attention of a forward pass; a multiply-add is two
    operations. The result is three times that number, because the backward pass takes twice as many
    operations. Element-wise operations and recomputation by rematerialization do not count, as in
    the definition of MFU (model FLOPs utilization). A loop whose length is unknown when it is
    compiled counts once; on TensorFlow any loop does.

    Args:
        model: `keras.Model`, built.
        x: A batch of inputs. Defaults to `None`: one sample of zeros, if the model has known input
            shapes.

    Returns:
        An integer; `None` if `x` is `None` and the model has no inputs of known shapes.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    >>> count_training_flops(model) == 3 * 2 * 4 * 5
    True
    """
    if x is None:
        x = example_inputs(model)
        if x is None:
            return None

    def forward(trainable: Any, non_trainable: Any, inputs: Any) -> Any:
        return model.stateless_call(trainable, non_trainable, inputs, training=False)[0]

    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
    values = [
        [variable.value for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]
    return _PASSES * backend.current().compute.count_flops(forward, *values, tensors)


def estimate_training_flops(num_parameters: int, num_tokens: float) -> float:
    """Estimates the floating-point operations of training on a number of tokens.

    The estimate is `6 * num_parameters * num_tokens`: two for each parameter's multiply-add, times
    three as in `count_training_flops`. It omits the cost of attention that grows with the length,
    and counts embeddings as matrix products.

    Args:
        num_parameters: integer. The number of parameters that a token uses.
        num_tokens: float. The number of tokens.

    Raises:
        InvalidInputError: One of them is negative or not a number.

    Example:

    >>> estimate_training_flops(1_000_000, 512)
    3072000000.0

    Reference:

    - [Scaling Laws for Neural Language Models (Kaplan et al., 2020)](https://arxiv.org/abs/2001.08361)
    """
    parameters = check_number("num_parameters", num_parameters, minimum=0)
    return 2.0 * _PASSES * parameters * check_number("num_tokens", num_tokens, minimum=0)


# Floating-point operations a second of one device, in bfloat16 or float16 with float32 sums, for
# dense matrices (vendors' larger figures are for sparse ones). Sources: NVIDIA's data sheet of each
# product, and its white papers of the Ampere, Ada and Blackwell architectures for GeForce; AMD's
# data sheet of the MI300X; Google's "System architecture" of Cloud TPU, where a device of v2 and v3
# is one of the chip's two cores. The first matching name is used.
_PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "T4": 65e12,
    "V100-PCIE": 112e12,
    "V100": 125e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,
    "TPU v2": 22.5e12,
}


def find_peak_flops(device_name: str | None) -> float | None:
    """Returns an accelerator's peak in half precision, in operations a second.

    It is found by the framework's name of the device, and `None` for a CPU or an unknown device.
    """
    for name, peak in _PEAKS.items():
        # Whole words only: an A10G is not an A10, and a laptop's RTX 4090 is not a desktop's.
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w| Laptop| Max-Q| D\b)", device_name or ""):
            return peak
    return None
