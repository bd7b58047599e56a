"""Labels that are no class, which some frameworks take for none at all."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_training import loss_functions

_ROUNDING = 1e-3  # By how much a smoothed or a mixed label may miss 0 and 1.


class _Marks:
    """How many ask for marks, and the functions that make none."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.num_asking = 0
        self.plain: dict[str, Callable[..., Any]] = {}


_marks = _Marks()


@contextmanager
def marking_wrong_labels() -> Iterator[None]:
    """Makes each cross entropy NaN where a label is no class of its output, until the block ends.

    It holds for the losses and metrics of Keras, and for functions of one's own that call them or
    `keras.ops`. JAX computes as if a sample with such a label had none, where TensorFlow and
    PyTorch raise an error on a CPU; in a binary cross entropy none of the three looks, or but one.
    What is compiled in the block marks them for good.
    """
    functions = loss_functions()
    with _marks.lock:
        _marks.num_asking += 1
        if _marks.num_asking == 1:
            for name, marked in _MARKED.items():
                _marks.plain[name] = getattr(functions, name)
                setattr(functions, name, marked)
    try:
        yield
    finally:
        with _marks.lock:
            _marks.num_asking -= 1
            if _marks.num_asking == 0:
                for name, plain in _marks.plain.items():
                    setattr(functions, name, plain)


def _sparse_categorical(target: Any, output: Any, from_logits: bool = False, axis: int = -1) -> Any:
    plain = _marks.plain["sparse_categorical_crossentropy"]
    losses = plain(target, output, from_logits=from_logits, axis=axis)
    num_classes = output.shape[axis]
    if num_classes is None:
        return losses
    labels = ops.reshape(ops.convert_to_tensor(target), ops.shape(losses))
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(labels.dtype)):
        labels = ops.cast(labels, "int32")  # As floats they may be NaN, which is none.
    return ops.where((labels >= 0) & (labels < num_classes), losses, float("nan"))


def _binary(target: Any, output: Any, from_logits: bool = False) -> Any:
    plain = _marks.plain["binary_crossentropy"]
    losses = plain(target, output, from_logits=from_logits)
    labels = ops.cast(target, losses.dtype)
    is_label = (labels >= -_ROUNDING) & (labels <= 1 + _ROUNDING)
    return ops.where(is_label, losses, float("nan"))


_MARKED = {
    "sparse_categorical_crossentropy": _sparse_categorical,
    "binary_crossentropy": _binary,
}
