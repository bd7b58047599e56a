"""Floating-point operations of a training step."""

from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.layers import example_inputs
from keras_deepseek.checks import check_number

_PASSES = 3  # Forward, backward by inputs, and backward by weights: each costs the same.


def count_training_flops(model: keras.Model, x: Any = None) -> int | None:
    """Counts the floating-point operations of a training step.

    It counts matrix products, convolutions and attention of a forward pass, with a multiply-add as
    two operations, times three, because the backward pass takes twice as many. As MFU is defined,
    element-wise operations and recomputation by rematerialization do not count. A loop whose length
    is unknown when it is compiled counts once; on TensorFlow any loop does.

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

    def forward(trainable: Any, other: Any, inputs: Any) -> Any:
        return model.stateless_call(trainable, other, inputs, training=False)[0]

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
