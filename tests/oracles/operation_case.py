"""One operation as a model: its ONNX file computes what Keras computes."""

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy.onnx_writer import write_program


def check_operation(
    function: Callable[..., Any],
    *arrays: Array,
    opset: int = 18,
    tolerance: float = 1e-5,
    free_axes: Collection[int] = (),
    lengths: Sequence[int] = (2, 6, 9),
    reference: Callable[..., Any] | None = None,
) -> Any:
    """Compares the ONNX file of a function of tensors with Keras, and returns the file.

    The first axis of the arrays is the batch. Integers, booleans, shapes and dtypes must be equal,
    floats up to `tolerance` relative to the largest finite number of the output. Axes of the arrays
    in `free_axes` are of unknown size as well, and have each of `lengths` in turn. A `reference` of
    arrays stands in for Keras, where its backends differ.
    """
    names = [f"x{index}" for index in range(len(arrays))]
    inputs = [
        keras.Input(
            [None if axis in free_axes else size for axis, size in enumerate(array.shape)][1:],
            dtype=str(array.dtype),
            name=name,
        )
        for name, array in zip(names, arrays, strict=True)
    ]
    outputs = tree.flatten(function(*inputs))
    model = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs)
    named = NamedModel(model)
    example = {name: _with_rows(array, 5) for name, array in zip(names, arrays, strict=True)}
    proto = write_program(named, example, opset)
    run = _load(proto)
    cases = [(rows, None) for rows in sorted({len(arrays[0]), 1, 7})]
    cases += [(3, length) for length in lengths if free_axes]
    for rows, length in cases:
        batch = {name: _with_rows(a, rows) for name, a in zip(names, arrays, strict=True)}
        if length is not None:
            batch = {name: _with_length(a, free_axes, length) for name, a in batch.items()}
        if reference is None:
            packed = named.pack_inputs(batch)
            outputs = model(keras.tree.map_structure(keras.ops.convert_to_tensor, packed))
            expected = [keras.ops.convert_to_numpy(tensor) for tensor in tree.flatten(outputs)]
        else:
            expected = tree.flatten(reference(*batch.values()))
        for result, array in zip(run(batch), expected, strict=True):
            _compare(result, array, tolerance)
    return proto


def as_layer(function: Callable[..., Any]) -> keras.Layer:
    """Returns a layer of a function of one tensor or two, which may read the tensors' sizes."""

    class OfOne(keras.Layer):
        def call(self, x):
            return function(x)

    class OfTwo(keras.Layer):
        def call(self, x, y):
            return function(x, y)

    parameters = inspect.signature(function).parameters.values()
    num_tensors = sum(parameter.default is parameter.empty for parameter in parameters)
    return OfOne() if num_tensors == 1 else OfTwo()


def _with_rows(array: Array, rows: int) -> Array:
    return np.resize(array, (rows, *array.shape[1:]))


def _with_length(array: Array, axes: Collection[int], length: int) -> Array:
    for axis in axes:
        array = np.take(array, range(length), axis, mode="wrap")
    return array


def _load(proto: Any) -> Callable[[dict[str, Array]], list[Array]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda batch: session.run(None, batch)  # type: ignore[no-any-return]


def _compare(result: Array, expected: Array, tolerance: float) -> None:
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(result, expected)
        return
    finite = expected[np.isfinite(expected)]
    largest = float(np.abs(finite).max()) if finite.size else 1.0
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance * largest)
