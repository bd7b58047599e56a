"""Summary of an exporter's error in one line, with the layer at which it failed.

Exporters seldom name it. It is found in the frames of the traceback.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from types import FrameType

import keras

from keras_deepseek.errors import KerasDeepSeekError

_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 300
DISK_IS_FULL = os.strerror(errno.ENOSPC)
"""The system's message for a full disk."""
_TORCH_NOTICE = "The error above occurred when calling torch.export"
"""A line that PyTorch may write before or after the reason."""
_NUM_LINES = 2  # Keras's first line has the place, and its second the reason.


@contextlib.contextmanager
def whole_tracebacks() -> Iterator[None]:
    """A context manager that makes Keras keep its own frames in tracebacks."""
    were_filtered = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        if were_filtered:
            keras.config.enable_traceback_filtering()


def failure_place(error: BaseException) -> str:
    """Returns the layer in which an exporter's error was raised; `""` if it is unknown."""
    layers: list[str] = []
    traceback = error.__traceback__
    while traceback is not None:
        if name := _layer_name(traceback.tb_frame):
            layers = [*layers[: layers.index(name)], name] if name in layers else [*layers, name]
        traceback = traceback.tb_next
    return f"in {'/'.join(layers)!r}" if layers else ""


def _layer_name(frame: FrameType) -> str:
    layer = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames else None
    if isinstance(layer, keras.Model) or not isinstance(layer, keras.Layer | keras.Operation):
        return ""
    return str(layer.name)


def failure_reason(error: BaseException) -> str:
    """Returns a one-line summary of an exporter's error.

    It is the message of an error of this package. For another error it is the message of the error
    that it was raised from, with the place in the model if the traceback tells it.
    """
    if isinstance(error, KerasDeepSeekError):
        return str(error)
    while error.__cause__ is not None:
        error = error.__cause__
    text = _COLORS.sub("", str(error))
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(_TORCH_NOTICE)]
    words = " ".join(lines[:_NUM_LINES])
    if DISK_IS_FULL in text and DISK_IS_FULL not in words[:_LONGEST]:  # TensorFlow says it last.
        words = DISK_IS_FULL
    kind, location = type(error).__name__, failure_place(error)
    summary = f"{kind}: {words[:_LONGEST].rstrip('.')}" if words else kind
    return f"{summary} ({location})" if location else summary
