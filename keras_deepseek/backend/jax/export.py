"""JAX's own ways out of Keras: jax2onnx, and jax2tf where TensorFlow is installed beside it."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.export

from keras_deepseek.artifacts.errors import MissingExtraError
from keras_deepseek.backend.free_axes import Shapes, with_named_axes
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
        with _iota_for_free_sizes():
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

    with_named_axes(model.signature, write)


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
