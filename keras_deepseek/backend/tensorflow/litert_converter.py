"""LiteRT files, which TensorFlow's converter makes from SavedModels."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import tensorflow as tf

from keras_deepseek.artifacts.signature import Batch
from keras_deepseek.artifacts.staging_folder import temporary_folder
from keras_deepseek.backend.runtimes.litert_model import interpreter_of_tensorflow
from keras_deepseek.backend.runtimes.saved_model import SERVING_DEFAULT
from keras_deepseek.backend.tensorflow.litert_operations import rewrite
from keras_deepseek.errors import ExportError

# The converter's messages about operations that it refuses.
_REFUSED = re.compile(r"'tf\.(\w+)' op ")
_PLACE = re.compile(r'fused\["(\w+):", "([^"@]+)@')
_OPERANDS = re.compile(r"\ttf\.(\w+)\((.*?)\) -> ")
_LONGEST = 300
_STDERR = 2


def convert_saved_model(
    saved_model: Path, *, in_float16: bool, calibration: Sequence[Batch] | None
) -> bytes:
    """Returns the content of a LiteRT file, as `Export.convert_to_litert` describes."""
    written, refused = saved_model, set[str]()
    with temporary_folder("keras_deepseek_litert") as work:
        while True:
            try:
                return _convert(written, in_float16, calibration)
            except Exception as error:  # The errors of its stages have no common class.
                names = dict.fromkeys(_REFUSED.findall(str(error)))
                is_new = not refused.issuperset(names)  # One stage may hide those of the next.
                refused.update(names)
                written = work / str(len(refused))
                if not (is_new and rewrite(saved_model, refused, written)):
                    raise ExportError(_describe(str(error), names)) from error


def _convert(saved_model: Path, in_float16: bool, calibration: Sequence[Batch] | None) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(saved_model), signature_keys=[SERVING_DEFAULT]
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if in_float16 or calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if in_float16:
        converter.target_spec.supported_types = [tf.float16]
    if calibration is not None:
        converter.representative_dataset = lambda: iter(calibration)
    with _silent_stderr(), interpreter_of_tensorflow():  # It computes the ranges.
        content: bytes = converter.convert()
    return content


def _describe(text: str, refused: Collection[str]) -> str:
    if not refused:
        return f"LiteRT's converter fails: {' '.join(text.split())[:_LONGEST]}"
    nodes, operands = dict(_PLACE.findall(text)), dict(_OPERANDS.findall(text))
    described = [
        f"{name}({operands.get(name, '')}) in {nodes.get(name, 'the model')!r}" for name in refused
    ]
    return (
        f"LiteRT has no operation for {'; '.join(described)}: only TensorFlow's own kernels (Flex) "
        "have, which its runtime lacks. Replace these operations in the model, or choose another "
        "format."
    )


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Context manager that drops what C++ code writes to the standard error.

    The converter writes pages there about each operation that it refuses. Its error has them, too.
    """
    sys.stderr.flush()
    original = os.dup(_STDERR)
    try:
        with tempfile.TemporaryFile() as dropped:
            os.dup2(dropped.fileno(), _STDERR)
            yield
    finally:
        os.dup2(original, _STDERR)
        os.close(original)
