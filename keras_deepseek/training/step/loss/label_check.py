"""Rejects labels that are outside the range of classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_private.masks import output_masks
from keras_deepseek.training.step.loss.compiled_losses import losses_by_output

_MIN_BINARY, _MAX_BINARY = -0.5, 1.5
"""The range of labels of a binary cross entropy, which may be smoothed or noisy."""


def check_labels(model: keras.Model, loss: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
    """Returns the loss of a batch, replaced by NaN if a cross entropy label is not a class.

    For the sparse cross entropy, TensorFlow and PyTorch raise an error on a CPU, and JAX ignores
    the sample. For the binary one, only PyTorch checks labels.

    The last axis of the outputs is that of the classes. Labels with weight 0 or under a mask are
    not checked.
    """
    for output_loss, labels, outputs, weights in losses_by_output(model, y, y_pred, sample_weight):
        is_wrong = None if labels is None else _find_wrong(output_loss, labels, outputs)
        if is_wrong is None:
            continue
        for counts in (weights, *output_masks(outputs)):
            is_wrong = _and_counted(is_wrong, counts)
        loss = ops.where(ops.any(is_wrong), float("nan"), loss)
    return loss


@contextmanager
def label_checks(model: keras.Model) -> Iterator[None]:
    """Context manager in which `model.compute_loss` calls `check_labels`, for every caller."""
    own_compute_loss = vars(model).get("compute_loss")
    compute = model.compute_loss

    def compute_loss(
        x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **options: Any
    ) -> Any:
        loss = compute(x, y, y_pred, sample_weight, **options)
        return check_labels(model, loss, y, y_pred, sample_weight)

    model.compute_loss = compute_loss
    try:
        yield
    finally:
        if own_compute_loss is None:
            del model.compute_loss
        else:
            model.compute_loss = own_compute_loss


def _find_wrong(loss: Any, labels: Any, outputs: Any) -> Any:
    """Returns a boolean tensor, true for labels outside the classes; `None` if not checked."""
    classes = ops.convert_to_tensor(labels)
    if loss is keras.losses.binary_crossentropy or isinstance(
        loss, keras.losses.BinaryCrossentropy
    ):
        classes = ops.cast(classes, "float32")
        return (classes < _MIN_BINARY) | (classes > _MAX_BINARY)
    is_object = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    is_sparse = is_object or loss is keras.losses.sparse_categorical_crossentropy
    if not is_sparse or outputs.shape[-1] is None:
        return None
    if len(classes.shape) == len(outputs.shape) and classes.shape[-1] == 1:
        classes = ops.squeeze(classes, -1)
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(classes.dtype)):
        classes = ops.cast(classes, "int32")  # Floating-point labels stay: they may be NaN.
    is_class = (classes >= 0) & (classes < outputs.shape[-1])
    if is_object and loss.ignore_class is not None:
        is_class = is_class | (classes == loss.ignore_class)
    return ops.logical_not(is_class)


def _and_counted(is_wrong: Any, weights: Any) -> Any:
    """Restricts a boolean tensor of wrong labels to those whose weight is not 0.

    Weights may be by row, or by row and further axes of the labels.
    """
    if weights is None:
        return is_wrong
    counts = ops.not_equal(weights, 0)
    while len(counts.shape) > len(is_wrong.shape) and counts.shape[-1] == 1:
        counts = ops.squeeze(counts, -1)
    while len(counts.shape) < len(is_wrong.shape):
        counts = ops.expand_dims(counts, -1)
    return ops.logical_and(is_wrong, counts)
