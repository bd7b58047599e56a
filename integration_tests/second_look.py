"""A second look at an artifact, without the Exporter: other batches, and what Keras gives for them.

The export matrix and the fuzzer have it in common.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Signature, TensorSpec

Batch = dict[str, Any]
"""Arrays by the name of an input or output."""
TOLERANCE, OF_HALF_PRECISION = 1e-4, 1e-2
"""The largest difference, as a share of the largest value: the Exporter's own."""
_LEAST_SCALE = 1e-2


def draw_batches(
    signature: Signature,
    sizes: Iterable[tuple[int, tuple[int, ...]]],
    draw: Callable[[TensorSpec, list[int]], Any],
) -> Iterator[Batch]:
    """Yields batches by input name.

    Args:
        signature: `Signature`.
        sizes: The rows of each batch, and the lengths that its free axes have in turn.
        draw: Function from an input and its shape to an array.
    """
    for num_rows, lengths in sizes:
        turns = itertools.cycle(lengths)
        yield {
            spec.name: draw(
                spec,
                [num_rows, *(next(turns) if size is None else size for size in spec.shape[1:])],
            )
            for spec in signature.inputs
        }


def compute(
    model: keras.Model, signature: Signature, batches: Iterable[Batch]
) -> tuple[list[Batch], list[Batch]]:
    """Returns the batches that a model takes, and what it gives for them, by Keras alone."""
    accepted, outputs = [], []
    for batch in batches:
        try:
            outputs.append(call(model, signature, batch))
        except Exception:  # noqa: BLE001 - the model itself takes no such lengths.
            continue
        accepted.append(batch)
    return accepted, outputs


def call(model: keras.Model, signature: Signature, batch: Batch) -> Batch:
    """Returns a model's outputs by name, by Keras alone."""
    names = [spec.name for spec in signature.inputs]
    inputs: Any = batch[names[0]] if len(names) == 1 else dict(batch)
    if isinstance(getattr(model, "input", None), list):
        inputs = [batch[name] for name in names]
    if keras.backend.backend() == "jax":  # Eagerly it compiles each operation.
        outputs = _call_compiled(model, inputs)
    else:
        outputs = model(inputs, training=False)
    arrays = [keras.ops.convert_to_numpy(tensor) for tensor in keras.tree.flatten(outputs)]
    if isinstance(outputs, dict):
        return dict(zip(keras.tree.flatten({key: key for key in outputs}), arrays, strict=True))
    return dict(zip((spec.name for spec in signature.outputs), arrays, strict=True))


def _call_compiled(model: keras.Model, inputs: Any) -> Any:
    """Returns what a model on JAX gives; `predict` would take its weights away where it fails."""
    import jax

    states = [
        [variable.value for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]
    return jax.jit(lambda *values: model.stateless_call(*values, training=False)[0])(
        *states, inputs
    )


def tolerance(model: keras.Model) -> float:
    """Returns what an artifact of a model may differ by."""
    is_half = any(layer.compute_dtype == "float16" for layer in model._flatten_layers())
    return OF_HALF_PRECISION if is_half else TOLERANCE


def difference(expected: list[Batch], received: list[Batch]) -> float:
    """Returns the largest difference of an artifact's outputs, as a share of their largest value.

    It is infinite where names, shapes or dtypes differ, or the places of what is not finite.
    """
    shares = (
        _difference(array, outputs[name]) if set(outputs) == set(expected_outputs) else float("inf")
        for expected_outputs, outputs in zip(expected, received, strict=True)
        for name, array in expected_outputs.items()
    )
    return max(shares, default=0.0)


def _difference(expected: Any, received: Any) -> float:
    if expected.shape != received.shape or expected.dtype != received.dtype:
        return float("inf")
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, received) else float("inf")
    expected, received = expected.astype("float64"), received.astype("float64")
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], received[~finite], equal_nan=True):
        return float("inf")
    scale = max(_LEAST_SCALE, np.abs(expected[finite]).max(initial=0.0))
    share = np.abs(expected[finite] - received[finite]).max(initial=0.0) / scale
    return float(share) if np.isfinite(share) else float("inf")
