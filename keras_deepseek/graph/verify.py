"""Comparison of an optimized model with the original, and timing of both."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import keras
import numpy as np
from keras import ops, tree

from keras_deepseek import backend
from keras_deepseek.artifacts.compare_outputs import compare_outputs
from keras_deepseek.artifacts.signature import Array, Signature, TensorSpec
from keras_deepseek.backend.data.random_state import read_random_state, write_random_state
from keras_deepseek.backend.export.random_batch import draw_batch
from keras_deepseek.backend.keras_private.layer_precision import autocast_to, temporary_policy
from keras_deepseek.backend.keras_private.layers import block_states, flatten_layers, seed_states
from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes
from keras_deepseek.backend.keras_private.variables import NestedScope
from keras_deepseek.errors import ExportError
from keras_deepseek.graph.ir import Graph, Shape
from keras_deepseek.graph.known_code import CannotOpenError, protected_attributes
from keras_deepseek.graph.program import Program
from keras_deepseek.graph.size_expressions import FreeAxis
from keras_deepseek.graph.trace import call_model

_Result = TypeVar("_Result")

_HALF = ("bfloat16", "float16")
_RATES = {"rate", "dropout", "recurrent_dropout"}
_SECONDS = 0.4
_ROUNDS = (5, 200)
"""The fewest and most rounds of a timing; between them it ends after `_SECONDS` a function."""


class Verifier:
    """Compares functions with the model that they stand for, on a few batches.

    It compares outputs, the variables that a call assigns, and in training the gradients. The
    model's variables and all random number generators stay as they are.

    Args:
        batches: Inputs as the model takes them. Those that the model refuses are left out.
        training: True to compare the computation in training, and its gradients.
    """

    def __init__(self, model: keras.Model, batches: Iterable[Any], *, training: bool) -> None:
        self._model = model
        self._training = training
        step = backend.current().step
        self._variables = model.variables
        self._values = [step.stored_value(variable) for variable in self._variables]
        if any(value is None for value in self._values):
            raise CannotOpenError("has weights that can't be read while Keras holds them")
        self._random_state = read_random_state(makes_missing=False)
        layers = flatten_layers(model)
        self._is_half = any(layer.compute_dtype in _HALF for layer in layers)
        self._batches: list[Any] = []
        self._expected: list[_Results] = []
        self._exact: list[_Results] = []
        for batch in batches:
            try:
                self._expected.append(self._evaluate(self._call_model, batch))
            except Exception:
                if not self._batches:  # The caller's own inputs.
                    raise
                continue
            self._batches.append(batch)
            if self._is_half:
                exact = keras.DTypePolicy("float32")
                with temporary_policy(layers, exact), autocast_to("float32"):
                    self._exact.append(self._evaluate(self._call_model, batch))

    def compare(self, call: Callable[[Any], Any]) -> float:
        """Returns the largest absolute difference of the outputs of `call(inputs)`.

        Raises an `ExportError` if anything differs too much. In half precision, the outputs may be
        twice as far from those in float32 as the model's are.
        """
        received = [self._evaluate(call, batch) for batch in self._batches]
        if self._is_half:
            for results in zip(self._exact, self._expected, received, strict=True):
                for part in zip(*results, strict=True):
                    _compare_in_half(*part)
        else:
            _compare_in_float32(self._expected, received)
        return max(
            float(np.abs(_finite(array) - _finite(outputs[name])).max(initial=0.0))
            for (expected, _), (outputs, _) in zip(self._expected, received, strict=True)
            for name, array in expected.items()
        )

    def _call_model(self, inputs: Any) -> Any:
        return call_model(self._model, inputs, training=self._training)

    def _evaluate(self, call: Callable[[Any], Any], batch: Any) -> "_Results":
        """Returns outputs and assigned variables, and in training gradients."""
        variables = self._model.trainable_variables if self._training else []
        function = flat_call(call, batch, variables, block_states(self._model))
        paths: list[str] = []

        def run(values: list[Any], *tensors: Any) -> tuple[Sequence[Any], list[Any]]:
            with NestedScope(zip(self._variables, values, strict=True)) as scope:
                results = function(*tensors)
                # Not a global seed generator, which a layer may create.
                assigned = [state for state in self._variables if id(state) in scope.assigned]
                paths[:] = [variable.path for variable in assigned]
                return results, [*map(scope.get_current_value, assigned)]

        write_random_state(self._random_state)
        with protected_attributes(self._model), _without_dropout(self._model):
            run = backend.current().compute.compile_for_one_call(run)
            results, values = run(self._values, *tree.flatten(batch))
        write_random_state(self._random_state)
        arrays, values = ([*map(_to_array, tensors)] for tensors in (results, values))
        number = len(arrays) - len(variables)
        outputs = {f"output {index}": array for index, array in enumerate(arrays[:number])}
        names = [f"gradient of {variable.path}" for variable in variables]
        gradients = dict(zip(names, arrays[number:], strict=True))
        for path, value in zip(paths, values, strict=True):
            outputs[f"assigned value {len(outputs)}, of {path}"] = value
        return outputs, gradients


_Results = tuple[dict[str, Array], dict[str, Array]]
"""The outputs with the assigned variables, and the gradients of one batch, by name."""


def flat_call(
    call: Callable[[Any], Any],
    inputs: Any,
    variables: Sequence[keras.Variable],
    states: Sequence[keras.Variable],
) -> Callable[..., Sequence[Any]]:
    """Returns a function from flat inputs to the flat outputs and gradients of `call(inputs)`.

    The gradients by `variables` are those of a fixed weighted sum of the outputs. `states` are the
    variables that `call` may assign.
    """
    step = backend.current().step

    def call_flat(tensors: Sequence[Any]) -> list[Any]:
        return list(tree.flatten(call(tree.pack_sequence_as(inputs, tensors))))

    def run(*tensors: Any) -> list[Any]:
        if not variables:
            return call_flat(tensors)

        def compute() -> tuple[Any, list[Any]]:
            outputs = call_flat(tensors)
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
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            ops.convert_to_numpy(function()[-1])  # Waits until it is computed.
            seconds.append(time.perf_counter() - start)
    return [min(seconds) for seconds in times]


def resized_batches(inputs: Any, axes: Sequence[FreeAxis], *, training: bool) -> Iterator[Any]:
    """Yields inputs, then the same with the fewest rows and steps, and then with more of them."""
    yield inputs
    for is_smaller in (True, False) if axes else ():
        tensors = tree.flatten(inputs)
        for axis in axes:
            index, input_axis = axis.input_axes[0]
            size = int(tensors[index].shape[input_axis])
            # PyTorch has no gradient of some convolutions of one row.
            smallest = 2 if training and axis.is_batch else 1
            positions = np.arange(smallest if is_smaller else size + 3)[::-1] % size
            for index, input_axis in axis.input_axes:
                indices = ops.convert_to_tensor(positions.copy())
                tensors[index] = ops.take(tensors[index], indices, axis=input_axis)
        yield tree.pack_sequence_as(inputs, tensors)


def draw_inputs(model: keras.Model, example: Any, shapes: Sequence[Shape]) -> Any:
    """Returns random inputs of some shapes, of the structure and dtypes of example inputs."""
    names = [f"input_{index}" for index in range(len(shapes))]
    sizes = dict(zip(names, shapes, strict=True))
    specs = [
        TensorSpec(name, sizes[name], keras.backend.standardize_dtype(tensor.dtype))
        for name, tensor in zip(names, tree.flatten(example), strict=True)
    ]
    batch = draw_batch(model, Signature(tuple(specs), ()), sizes)
    return tree.pack_sequence_as(example, [ops.convert_to_tensor(batch[name]) for name in names])


def computes_the_same(
    model: keras.Model, example: Any, graph: Graph, shapes: Sequence[Shape], *, training: bool
) -> bool:
    """Returns True if a graph computes what the model does on random inputs of some shapes."""

    def compare() -> bool:
        inputs = draw_inputs(model, example, shapes)
        try:
            Verifier(model, [inputs], training=training).compare(Program(graph))
        except Exception:  # noqa: BLE001 - a layer may raise anything
            return False
        return True

    return in_new_thread(compare)


def in_new_thread(function: Callable[[], _Result]) -> _Result:
    """Calls a function where no framework traces or compiles what it does."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def _to_array(tensor: Any) -> Array:
    return np.asarray(ops.convert_to_numpy(tensor))


@contextlib.contextmanager
def _without_dropout(model: keras.Model) -> Iterator[None]:
    """Sets the dropout rates of layers that draw random numbers to 0 in a `with` block.

    A program that leaves out rows draws fewer numbers for dropout than the model. Layers that have
    no such rate draw the same numbers again.
    """
    with contextlib.ExitStack() as stack:
        for layer in flatten_layers(model):
            if seed_states(layer):
                # `dropout` of a user's layer may be a layer.
                rates = [key for key in _RATES if isinstance(vars(layer).get(key), int | float)]
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
    expected_gradients, received_gradients = (
        [
            {name: array / (largest or 1.0) for name, array in gradients.items()}
            for _, gradients in results
        ]
        for results in (expected, received)
    )
    compare_outputs(expected_gradients, received_gradients, by_column=False)


def _compare_in_half(
    exact: dict[str, Array], expected: dict[str, Array], received: dict[str, Array]
) -> None:
    for name, reference in exact.items():
        if not np.array_equal(np.isfinite(expected[name]), np.isfinite(received[name])):
            raise ExportError(f"{name!r}: NaN or infinity in different places.")
        target = _finite(reference)
        expected_error, received_error = (
            float(np.sqrt(np.square(_finite(arrays[name]) - target).mean()))
            for arrays in (expected, received)
        )
        rounding = 2.0**-8 * float(np.sqrt(np.square(target).mean()))
        if received_error > 2 * expected_error + rounding:
            raise ExportError(
                f"{name!r} is off from float32 by {received_error:.3g} (root mean square), the "
                f"original by {expected_error:.3g}."
            )
