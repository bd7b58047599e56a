"""ONNX and SavedModel files written from TensorFlow."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)
from tensorflow.python.grappler import tf_optimizer

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.saved_model_writer import ServingSignatures, save_as_saved_model
from keras_deepseek.backend.export.tf2onnx_operators import HANDLERS
from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes
from keras_deepseek.backend.protocols.inference import Export
from keras_deepseek.errors import MissingExtraError

_HIGHEST_OPSET = 18
"""The newest operator set that tf2onnx writes."""

_CATCHES = "TF2ONNX_CATCH_ERRORS"


class TensorFlowExport(Export):
    """Implements `Export` by TensorFlow."""

    def write_saved_model(
        self, model: NamedModel, path: str, signatures: ServingSignatures
    ) -> None:
        save_as_saved_model(model, path, signatures)

    def write_onnx(self, model: NamedModel, path: str, opset: int) -> None:
        try:
            import tf2onnx
        except ImportError as error:
            raise MissingExtraError("tf2onnx", "onnx", "to export ONNX from TensorFlow") from error

        specs = {
            spec.name: tf.TensorSpec(spec.shape, spec.dtype, name=spec.name)
            for spec in model.signature.inputs
        }

        # By position: TensorFlow would sort the keys of a dict.
        def run(*tensors: tf.Tensor) -> list[tf.Tensor]:
            with _inlined_functions():
                outputs = model.trace(dict(zip(specs, tensors, strict=True)))
            return [outputs[spec.name] for spec in model.signature.outputs]

        signature = list(specs.values())
        with _whole_tracebacks():
            traced = _Traced(tf.function(run, autograph=False).get_concrete_function(*signature))

        def convert() -> None:
            tf2onnx.convert.from_function(
                traced,
                signature,
                opset=min(opset, _HIGHEST_OPSET),
                custom_op_handlers=HANDLERS,
                output_path=path,
            )

        # tf2onnx copies the graph and its weights before each of its optimizers, so that it can
        # continue if one fails. That takes most of its time and memory, and usually none fails.
        with _einsum_is_kept(), _transpositions_are_kept():
            try:
                with _optimizers_may_fail():
                    convert()
            except Exception:  # noqa: BLE001 - of an optimizer, or of what will fail again.
                with _constants_are_kept():
                    convert()


@contextlib.contextmanager
def _whole_tracebacks() -> Iterator[None]:
    """Context manager that keeps TensorFlow's frames in tracebacks, and so those of layers."""
    were_filtered = tf.debugging.is_traceback_filtering_enabled()
    tf.debugging.disable_traceback_filtering()
    try:
        yield
    finally:
        if were_filtered:
            tf.debugging.enable_traceback_filtering()


@contextlib.contextmanager
def _optimizers_may_fail() -> Iterator[None]:
    """Context manager in which tf2onnx copies no graph and lets its optimizers' errors through."""
    old_setting = os.environ.get(_CATCHES)
    os.environ[_CATCHES] = "FALSE"
    try:
        yield
    finally:
        del os.environ[_CATCHES]
        if old_setting is not None:
            os.environ[_CATCHES] = old_setting


@contextlib.contextmanager
def _einsum_is_kept() -> Iterator[None]:
    """Context manager in which tf2onnx keeps `Einsum` instead of a dozen nodes."""
    from tf2onnx import optimizer

    optimizers = getattr(optimizer, "_optimizers", {})
    old_optimizers = dict(optimizers)
    optimizers.pop("einsum_optimizer", None)
    try:
        yield
    finally:
        optimizers.clear()  # The order matters.
        optimizers.update(old_optimizers)


@contextlib.contextmanager
def _transpositions_are_kept() -> Iterator[None]:
    """Context manager in which tf2onnx does not turn a `Transpose` of size 1 axes into `Reshape`.

    tf2onnx reads the sizes from records. It moves a transposition past a square without updating
    them, which put the variance of 1x1 maps in a wrong order.
    """
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

    with temporary_attributes(TransposeOptimizer, post_optimize_action=lambda *_: None):
        yield


@contextlib.contextmanager
def _constants_are_kept() -> Iterator[None]:
    """Context manager in which TensorFlow folds no constants, as it may mix up bias and input.

    It turns `constant + (x + bias)` into `(constant + x) + bias` with the two swapped.
    """
    optimize = tf_optimizer.OptimizeGraph

    def optimize_less(config: Any, *arguments: Any, **options: Any) -> Any:
        names = config.graph_options.rewrite_options.optimizers
        names[:] = [name for name in names if name != "constfold"]
        return optimize(config, *arguments, **options)

    with temporary_attributes(tf_optimizer, OptimizeGraph=optimize_less):
        yield


@contextlib.contextmanager
def _inlined_functions() -> Iterator[None]:
    """Context manager that traces compiled functions, such as grouped convolution, as nodes."""
    was_eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(run_eagerly=True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(run_eagerly=was_eager)


class _Traced:
    """A traced TensorFlow function with the one method that tf2onnx calls.

    Captured values, such as an array in a model, become constants: tf2onnx would take them for
    inputs.
    """

    def __init__(self, function: Any) -> None:
        if any(tensor.dtype != tf.resource for tensor in function.captured_inputs):
            function = convert_variables_to_constants_v2(
                function, lower_control_flow=False, aggressive_inlining=True
            )
        self._function = function

    def get_concrete_function(self, *_: Any) -> Any:
        return self._function
