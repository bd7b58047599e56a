"""Comparison of an optimized model with the original, and timing of both."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_deepseek import backend
from keras_deepseek.artifacts.compare_outputs import compare_outputs
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.layer_precision import autocast_to, temporary_policy
from keras_deepseek.backend.keras_private.layers import (
    block_states,
    flatten_layers,
    functional_graph,
    seed_states,
)
from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes
from keras_deepseek.backend.keras_private.unchanged_state import unchanged_state
from keras_deepseek.errors import ExportError

_HALF = ("bfloat16", "float16")
_RATES = {"rate", "dropout", "recurrent_dropout"}
_SECONDS = 0.4
_ROUNDS = (5, 200)
"""The fewest and most rounds of a timing; between them it ends after `_SECONDS` a function."""


class Verifier:
    """Compares models with the original at two batch sizes.

    Nothing is compiled: that would take longer than the calls.

    Args:
        training: True to compare the computation in training, and its gradients.
    """

    def __init__(self, original: keras.Model, inputs: Any, *, training: bool) -> None:
        self._original = original
        self._training = training
        # PyTorch has no gradient of some convolutions of one row.
        self._batches = list(_resized(original, inputs, 2 if training else 1))
        layers = flatten_layers(original)
        # Layers without a seed on PyTorch draw from the framework's generator.
        self._random_state = backend.current().step.read_framework_random_state()
        self._is_half = any(layer.compute_dtype in _HALF for layer in layers)
        self._expected = [self._evaluate(original, batch) for batch in self._batches]
        self._exact: list[_Results] = []
        if self._is_half:
            exact = keras.DTypePolicy("float32")
            with temporary_policy(layers, exact), autocast_to("float32"):
                self._exact = [self._evaluate(original, batch) for batch in self._batches]

    def compare(self, model: keras.Model) -> float:
        """Returns the largest absolute difference of the outputs.

        Raises an `ExportError` if outputs or gradients differ too much. In half precision, a model
        may be off from float32 by twice as much as the original is.
        """
        received = [self._evaluate(model, batch) for batch in self._batches]
        if self._is_half:
            for results in zip(self._exact, self._expected, received, strict=True):
                for part in zip(*results, strict=True):
                    _compare_in_half(*part)
        else:
            _compare_in_float32(self._expected, received)
        return max(
            float(np.abs(_finite(array) - _finite(other[name])).max(initial=0.0))
            for (one, _), (other, _) in zip(self._expected, received, strict=True)
            for name, array in one.items()
        )

    def _evaluate(self, model: keras.Model, batch: Any) -> "_Results":
        """Returns outputs, and in training gradients. The model's state stays."""
        variables = self._original.trainable_variables if self._training else []
        function = flat_call(model, batch, self._training, variables)
        backend.current().step.write_framework_random_state(self._random_state)
        with unchanged_state(self._original), _without_dropout(self._original):
            arrays = [
                np.asarray(ops.convert_to_numpy(each)) for each in function(*tree.flatten(batch))
            ]
        number = len(arrays) - len(variables)
        outputs = {f"output {index}": array for index, array in enumerate(arrays[:number])}
        names = [f"gradient of {variable.path}" for variable in variables]
        return outputs, dict(zip(names, arrays[number:], strict=True))


_Results = tuple[dict[str, Array], dict[str, Array]]
"""The outputs and the gradients of one batch, by name."""


def flat_call(
    model: keras.Model, inputs: Any, training: bool, variables: Sequence[keras.Variable]
) -> Callable[..., Sequence[Any]]:
    """Returns a function from flat inputs to a model's flat outputs and gradients.

    The gradients by `variables` are those of a fixed weighted sum of the outputs.
    """
    step, states = backend.current().step, block_states(model)

    def call(tensors: Sequence[Any]) -> list[Any]:
        outputs = model(tree.pack_sequence_as(inputs, tensors), training=training)
        return list(tree.flatten(outputs))

    def run(*tensors: Any) -> list[Any]:
        if not variables:
            return call(tensors)

        def compute() -> tuple[Any, list[Any]]:
            outputs = call(tensors)
            return sum(map(_weighted_mean, outputs)), outputs

        outputs, backward = step.differentiate(compute, variables, states)
        gradients = [
            ops.zeros(variable.shape) if gradient is None else step.densify(gradient)
            for variable, gradient in zip(variables, backward(), strict=True)
        ]
        return [*outputs, *gradients]

    return run


def time_together(functions: Sequence[Callable[[], Sequence[Any]]]) -> list[float]:
    """Returns the least seconds of each function, called by turns.

    The least time is the one that other work on the machine disturbed least.
    """
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:  # The first call compiles.
        ops.convert_to_numpy(function()[-1])
    while len(times[0]) < _ROUNDS[0] or (
        len(times[0]) < _ROUNDS[1] and min(map(sum, times)) < _SECONDS
    ):
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            ops.convert_to_numpy(function()[-1])  # Waits until it is computed.
            found.append(time.perf_counter() - start)
    return [min(found) for found in times]


def _resized(model: keras.Model, inputs: Any, least: int) -> Iterator[Any]:
    """Yields the inputs, and a batch of `least` or three rows of them if the model takes it."""
    yield inputs
    graph = functional_graph(model)
    if graph is None or all(each.shape[0] is None for each in graph.inputs):
        rows = max(each.shape[0] for each in tree.flatten(inputs))
        number = 3 if rows == least else least

        def resize(tensor: Any) -> Any:
            indices = np.arange(number)[::-1] % tensor.shape[0]
            return ops.take(tensor, ops.convert_to_tensor(indices.copy()), axis=0)

        yield tree.map_structure(resize, inputs)


@contextlib.contextmanager
def _without_dropout(model: keras.Model) -> Iterator[None]:
    """Sets the dropout rates of layers that draw random numbers to 0 in a `with` block.

    Rows that nobody reads are cut through dropout, which then draws other numbers. Layers that have
    no such rate draw the same numbers again.
    """
    with contextlib.ExitStack() as stack:
        for layer in flatten_layers(model):
            rates = vars(layer).keys() & _RATES if seed_states(layer) else ()
            stack.enter_context(temporary_attributes(layer, **dict.fromkeys(rates, 0.0)))
        yield


def _weighted_mean(output: Any) -> Any:
    """Returns a scalar that depends on each number of an output, and 0 for integers."""
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(output.dtype)):
        return 0.0
    shape = tuple(output.shape)
    weights = np.cos(np.arange(math.prod(shape), dtype="float32")).reshape(shape)
    return ops.mean(ops.multiply(ops.cast(output, "float32"), ops.convert_to_tensor(weights)))


def _finite(array: Array) -> Array:
    finite: Array = np.nan_to_num(array.astype("float64"), posinf=0.0, neginf=0.0)
    return finite


def _compare_in_float32(expected: list[_Results], received: list[_Results]) -> None:
    compare_outputs([outputs for outputs, _ in expected], [outputs for outputs, _ in received])
    # Gradients are small. Those that are zero in exact arithmetic consist of rounding errors.
    arrays = [array for _, gradients in expected for array in gradients.values()]
    largest = max((float(np.abs(array).max(initial=0.0)) for array in arrays), default=0.0)
    one, other = (
        [
            {name: array / (largest or 1.0) for name, array in gradients.items()}
            for _, gradients in results
        ]
        for results in (expected, received)
    )
    compare_outputs(one, other, by_column=False)


def _compare_in_half(
    exact: dict[str, Array], expected: dict[str, Array], received: dict[str, Array]
) -> None:
    for name, reference in exact.items():
        if not np.array_equal(np.isfinite(expected[name]), np.isfinite(received[name])):
            raise ExportError(f"{name!r}: NaN or infinity in different places.")
        target = _finite(reference)
        own, other = (
            float(np.sqrt(np.square(_finite(each[name]) - target).mean()))
            for each in (expected, received)
        )
        rounding = 2.0**-8 * float(np.sqrt(np.square(target).mean()))
        if other > 2 * own + rounding:
            raise ExportError(
                f"{name!r} is off from float32 by {other:.3g} (root mean square), the original by "
                f"{own:.3g}."
            )
