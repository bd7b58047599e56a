"""What an exporter failed of, in a line of the many that it may have said."""

import errno
import os
import re

from keras_deepseek.deploy.failure_place import failure_place
from keras_deepseek.errors import KerasDeepSeekError

_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 300
DISK_IS_FULL = os.strerror(errno.ENOSPC)
"""What the system says where there is no room for a file."""
_OF_TORCH = "The error above occurred when calling torch.export"
"""What PyTorch may say before the reason, or behind it."""
_NUM_LINES = 2  # Keras says in the first where it was, and in the second what it was.


def failure_reason(error: BaseException) -> str:
    """Returns the cause of an error in short.

    An error of this package is its own cause; of another's, the one that it was raised from is, and
    where in the model that was is told as far as the traceback knows.

    Args:
        error: What an export raised.

    Example:

    >>> failure_reason(TypeError("no such operator"))
    'TypeError: no such operator'
    """
    if isinstance(error, KerasDeepSeekError):
        return str(error)
    while error.__cause__ is not None:
        error = error.__cause__
    text = _COLORS.sub("", str(error))
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(_OF_TORCH)]
    words = " ".join(lines[:_NUM_LINES])
    if DISK_IS_FULL in text and DISK_IS_FULL not in words[:_LONGEST]:  # TensorFlow says it last.
        words = DISK_IS_FULL
    kind, place = type(error).__name__, failure_place(error)
    told = f"{kind}: {words[:_LONGEST].rstrip('.')}" if words else kind
    return f"{told} ({place})" if place else told
