"""JAX's own ways out of Keras: jax2onnx, and jax2tf where TensorFlow is installed beside it."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.export
import numpy as np

from keras_deepseek.artifacts.errors import MissingExtraError
from keras_deepseek.backend.free_axes import Shapes, with_named_axes
from keras_deepseek.backend.jax.onnx_operators import functions_in_parts, primitives_in_parts
from keras_deepseek.backend.jax2onnx_pooling import pool_over_fewer_axes
from keras_deepseek.backend.named_model import NamedModel
from keras_deepseek.backend.saved_model_writer import save_as_saved_model
from keras_deepseek.backend.serving_signatures import ServingSignatures


def write_saved_model(model: NamedModel, path: str, signatures: ServingSignatures) -> None:
    """Writes the model as a SavedModel into a folder, or raises `NotSupportedError`."""

    def write(shapes: Shapes) -> None:
        options = {"polymorphic_shapes": [_polymorphic(shapes)]}
        save_as_saved_model(model, path, signatures, jax2tf_kwargs=options)

    with warnings.catch_warnings():
        # Keras names an option of jax2tf that is on its way out.
        warnings.filterwarnings("ignore", ".*native_serialization", DeprecationWarning)
        with_named_axes(model.signature, write)


def _polymorphic(shapes: Shapes) -> dict[str, str]:
    """Returns shapes as jax2tf takes them: a text each, and symbols for the free axes."""
    named = _with_symbols(shapes)
    return {name: ", ".join(map(str, shape)) for name, shape in named.items()}


def _with_symbols(shapes: Shapes) -> Shapes:
    """Puts symbols for the names of free axes, as JAX reads `left-right_axis_1` as a difference."""
    names = dict.fromkeys(size for shape in shapes.values() for size in shape)
    symbols = {name: f"axis_{index}" for index, name in enumerate(names) if isinstance(name, str)}
    return {
        name: tuple(symbols[size] if isinstance(size, str) else size for size in shape)
        for name, shape in shapes.items()
    }


def write_onnx(model: NamedModel, path: str, opset: int) -> None:
    """Writes an ONNX file of an opset up to this, or raises `NotSupportedError`."""
    try:
        import jax2onnx
    except ImportError as error:
        raise MissingExtraError("jax2onnx", "onnx-jax", "to export ONNX from JAX") from error

    names = [spec.name for spec in model.signature.inputs]

    def run(*tensors: Any) -> tuple[Any, ...]:
        with _iota_for_free_sizes(), _attention_in_parts(), functions_in_parts():
            outputs = model.trace(dict(zip(names, tensors, strict=True)))
        return tuple(outputs[spec.name] for spec in model.signature.outputs)

    def write(shapes: Shapes) -> None:
        symbolic = _with_symbols(shapes)
        jax2onnx.to_onnx(
            run,
            inputs=[
                jax.ShapeDtypeStruct(symbolic[spec.name], jax.numpy.dtype(spec.dtype))
                for spec in model.signature.inputs
            ],
            input_names=names,
            opset=opset,
            return_mode="file",
            output_path=path,
        )

    with primitives_in_parts():
        with_named_axes(model.signature, write)
    pool_over_fewer_axes(path)


@contextlib.contextmanager
def _iota_for_free_sizes() -> Iterator[None]:
    """Counts up to a free size by `iota`: jax2onnx makes a sentinel of the size in `arange`."""
    arange = jax.numpy.arange

    def count(start: Any, stop: Any = None, step: Any = None, dtype: Any = None) -> Any:
        is_free = jax.export.is_symbolic_dim(start) and stop is None and step is None
        if not is_free:
            bounds = [start, stop, step]
            while bounds[-1] is None:  # What jax2onnx puts for `arange` takes none.
                bounds.pop()
            return arange(*bounds, dtype=dtype)
        return jax.lax.broadcasted_iota(jax.numpy.dtype(dtype or "int32"), (start,), 0)

    jax.numpy.arange = count
    try:
        yield
    finally:
        jax.numpy.arange = arange


@contextlib.contextmanager
def _attention_in_parts() -> Iterator[None]:
    """Writes out what jax2onnx makes of JAX's attention: of a row with no key it makes zeros.

    JAX takes the mean of all values there, and so do the other backends.
    """
    attention = jax.nn.dot_product_attention
    jax.nn.dot_product_attention = _attend
    try:
        yield
    finally:
        jax.nn.dot_product_attention = attention


def _attend(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    implementation: str | None = None,
) -> Any:
    """Returns what `jax.nn.dot_product_attention` does of (batch, length, heads, features)."""
    num_groups = key.shape[2]
    shape = query.shape
    query = query.reshape((*shape[:2], num_groups, shape[2] // num_groups, shape[3]))
    scores = jax.numpy.einsum("btkgh,bskh->bkgts", query, key)
    scores = scores.astype("float32") * (shape[3] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores += _by_group(bias, num_groups)
    if is_causal:
        rows, columns = (jax.numpy.arange(scores.shape[axis]) for axis in (3, 4))
        scores = jax.numpy.where(rows[:, None] >= columns[None], scores, _NEVER)
    if mask is not None:
        scores = jax.numpy.where(_by_group(mask, num_groups), scores, _NEVER)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    attended = jax.numpy.einsum("bkgts,bskh->btkgh", weights, value)
    return attended.reshape((*shape[:3], value.shape[-1]))


_NEVER = -0.7 * float(np.finfo("float32").max)


def _by_group(array: Any, num_groups: int) -> Any:
    """Parts the heads of (batch, heads, length, length), or leaves the one that is for all."""
    batch, num_heads, *lengths = array.shape
    parts = (1, 1) if num_heads == 1 else (num_groups, num_heads // num_groups)
    return array.reshape((batch, *parts, *lengths))
