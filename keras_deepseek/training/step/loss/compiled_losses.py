"""The losses that a model was compiled with: their weights, reductions and labels."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_private.masks import output_masks
from keras_deepseek.errors import InvalidInputError

_MIN_BINARY, _MAX_BINARY = -0.5, 1.5
"""The range of labels of a binary cross entropy, which may be smoothed or noisy."""


def list_losses(loss: Any) -> list[Any]:
    """Returns the losses in a structure as a list, without `None`; names become loss objects."""
    return [_get_loss(leaf) for leaf in keras.tree.flatten(loss) if leaf is not None]


def losses_by_output(
    model: keras.Model, y: Any, y_pred: Any, sample_weight: Any
) -> list[tuple[Any, Any, Any, Any]]:
    """Returns each output's loss, labels, predictions and sample weights.

    The result is empty if the losses can't be assigned to outputs. As in Keras, a dict of losses is
    by the names of outputs.
    """
    spec = model.loss
    if isinstance(spec, dict):
        names = sorted(y_pred) if isinstance(y_pred, dict) else getattr(model, "output_names", [])
        spec = [spec.get(name) for name in names]
        if isinstance(y, dict):
            y = [y.get(name) for name in names]
        if isinstance(y_pred, dict):
            y_pred = [y_pred[name] for name in names]
        if isinstance(sample_weight, dict):
            sample_weight = [sample_weight.get(name) for name in names]
    losses, labels, outputs, weights = (
        keras.tree.flatten(structure) for structure in (spec, y, y_pred, sample_weight)
    )
    if len(weights) == 1:
        weights = weights * len(losses)
    if not len(losses) == len(labels) == len(outputs) == len(weights):
        return []
    return [
        (_get_loss(loss), *arguments)
        for loss, *arguments in zip(losses, labels, outputs, weights, strict=True)
    ]


def _get_loss(loss: Any) -> Any:
    return keras.losses.get(loss) if isinstance(loss, str | dict) else loss


def check_reduction(loss: Any) -> None:
    """Raises an error if a loss has no reduction, and so returns one number for each sample."""
    for loss_leaf in keras.tree.flatten(loss):
        if isinstance(loss_leaf, keras.losses.Loss) and loss_leaf.reduction in (None, "none"):
            raise InvalidInputError(
                f"The loss {loss_leaf.name!r} has reduction={loss_leaf.reduction!r}: it returns a "
                "number for each sample, and a training needs one number. Give it "
                "reduction='sum_over_batch_size', or override `Trainer.train_step`."
            )


def find_reduction(loss: Any) -> str:
    """Returns the reduction that all losses of a model have; raises an error if they differ."""
    reductions = {
        getattr(output_loss, "reduction", "sum_over_batch_size")
        for output_loss in list_losses(loss)
    }
    reductions = {"sum_over_batch_size" if name == "mean" else name for name in reductions}
    if len(reductions) > 1:
        raise InvalidInputError(
            "Micro-batches need losses with the same reduction; received losses with "
            f"{', '.join(sorted(map(str, reductions)))}."
        )
    return reductions.pop() if reductions else "sum_over_batch_size"


def compute_loss_weight(loss: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
    """Returns the number by which a mean loss was divided, as a float32 scalar.

    It is the number of rows. With a mask or `ignore_class`, it is the number of tokens that count.
    With `reduction="mean_with_sample_weight"`, it is the sum of the weights.

    Raises:
        InvalidInputError: There are several outputs with their own masks.
    """
    outputs, masks = keras.tree.flatten(y_pred), output_masks(y_pred)
    ignored = [getattr(output_loss, "ignore_class", None) for output_loss in list_losses(loss)]
    by_weight = find_reduction(loss) == "mean_with_sample_weight"
    leaves_tokens_out = any(setting is not None for setting in (*masks, *ignored))
    if not leaves_tokens_out and not by_weight:
        return ops.cast(ops.shape(outputs[0])[0], "float32")
    if len(outputs) > 1:
        raise InvalidInputError(
            f"Micro-batches can't weigh {len(outputs)} outputs that have their own masks. Override "
            "`Trainer.train_step` and return the loss and its weight."
        )
    is_counted = masks[0]  # A boolean for each token; `None` if all count.
    if ignored and ignored[0] is not None:
        classes = ops.convert_to_tensor(keras.tree.flatten(y)[0])
        if len(classes.shape) == len(outputs[0].shape):
            classes = ops.squeeze(classes, -1)
        is_class = ops.not_equal(classes, ignored[0])
        is_counted = is_class if is_counted is None else ops.logical_and(is_counted, is_class)
    if not by_weight:
        return ops.sum(ops.cast(is_counted, "float32"))
    if is_counted is None:
        weights = ops.ones(ops.shape(outputs[0])[:-1], "float32")
    else:
        weights = ops.cast(is_counted, "float32")
    if sample_weight is not None:
        row_weights = ops.cast(keras.tree.flatten(sample_weight)[0], "float32")
        # Weights of rows get axes of size 1, so that each weighs all tokens of its row.
        missing = len(weights.shape) - len(row_weights.shape)
        weights = weights * ops.reshape(row_weights, (*ops.shape(row_weights), *[1] * missing))
    return ops.sum(weights)


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
