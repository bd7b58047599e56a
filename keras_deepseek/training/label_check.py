"""Labels that are no class, which some frameworks take for none at all."""

from typing import Any

import keras
from keras import ops


def mark_wrong_labels(loss: Any, spec: Any, y: Any, y_pred: Any) -> Any:
    """Returns a loss, NaN where a label of a sparse cross entropy is no class of the outputs.

    TensorFlow and PyTorch raise an error on a CPU; JAX computes as if the sample had no label.

    Args:
        loss: Scalar tensor.
        spec: What the model was compiled with as its loss.
        y: Labels.
        y_pred: Outputs of shape `(..., num_classes)`.
    """
    if spec in ("sparse_categorical_crossentropy", keras.losses.sparse_categorical_crossentropy):
        ignored = None
    elif isinstance(spec, keras.losses.SparseCategoricalCrossentropy):
        ignored = spec.ignore_class
    else:
        return loss
    if not hasattr(y_pred, "shape") or y is None or y_pred.shape[-1] is None:
        return loss
    labels = ops.cast(y, "int32")
    is_class = ops.logical_and(labels >= 0, labels < y_pred.shape[-1])
    if ignored is not None:
        is_class = ops.logical_or(is_class, ops.equal(labels, ignored))
    return ops.where(ops.all(is_class), loss, float("nan"))
