"""Summary of an exporter's error in one line."""

import errno
import os
import re

from keras_deepseek.deploy.failure_place import failure_place
from keras_deepseek.errors import KerasDeepSeekError

_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 300
DISK_IS_FULL = os.strerror(errno.ENOSPC)
"""The system's message for a full disk."""
_TORCH_NOTICE = "The error above occurred when calling torch.export"
"""A line that PyTorch may write before or after the reason."""
_NUM_LINES = 2  # Keras's first line has the place, and its second the reason.


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
