"""Labels that are no class, which some frameworks take for none at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from keras_deepseek.training.compiled_losses import losses_by_output


def mark_wrong_labels(model: keras.Model, loss: Any, y: Any, y_pred: Any) -> Any:
    """Returns a loss, NaN where a label of a sparse cross entropy is no class of its output.

    TensorFlow and PyTorch raise an error on a CPU; JAX computes as if the sample had no label.

    Args:
        model: `keras.Model`, compiled.
        loss: Scalar tensor, what it was compiled with and made of this batch.
        y: Labels, or a structure of them.
        y_pred: Outputs, of shape `(..., num_classes)` where the loss is such.
    """
    for each, labels, outputs in losses_by_output(model, y, y_pred):
        ignored = _read_ignored_class(each)
        if ignored is _NOT_SPARSE or labels is None or outputs.shape[-1] is None:
            continue
        classes = ops.convert_to_tensor(labels)
        if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(classes.dtype)):
            classes = ops.cast(classes, "int32")  # As floats they may be NaN, which is none.
        is_class = (classes >= 0) & (classes < outputs.shape[-1])
        if ignored is not None:
            is_class = is_class | (classes == ignored)
        loss = ops.where(ops.all(is_class), loss, float("nan"))
    return loss


@contextmanager
def marking_wrong_labels(model: keras.Model) -> Iterator[None]:
    """Makes a model's `compute_loss` mark wrong labels, whoever calls it, until the block ends.

    Args:
        model: `keras.Model`, compiled.
    """
    own = vars(model).get("compute_loss")
    compute = model.compute_loss

    def compute_loss(
        x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **options: Any
    ) -> Any:
        loss = compute(x, y, y_pred, sample_weight, **options)
        return mark_wrong_labels(model, loss, y, y_pred)

    model.compute_loss = compute_loss
    try:
        yield
    finally:
        if own is None:
            del model.compute_loss
        else:
            model.compute_loss = own


_NOT_SPARSE = object()


def _read_ignored_class(loss: Any) -> Any:
    """Returns the class that a sparse cross entropy ignores, or that the loss is none."""
    if loss is keras.losses.sparse_categorical_crossentropy:
        return None
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        return loss.ignore_class
    return _NOT_SPARSE
