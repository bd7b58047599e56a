"""The weight of a mean loss, such as a number of rows, to combine parts of a batch."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_private.masks import output_masks
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.loss.compiled_losses import list_losses


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

    It is the number of rows; with a mask or `ignore_class`, of unmasked tokens; with
    `reduction="mean_with_sample_weight"`, the sum of the weights.

    Raises:
        InvalidInputError: There are several outputs with their own masks.
    """
    outputs, masks = keras.tree.flatten(y_pred), output_masks(y_pred)
    ignored = [getattr(output_loss, "ignore_class", None) for output_loss in list_losses(loss)]
    by_weight = find_reduction(loss) == "mean_with_sample_weight"
    counts = [mask for mask in (*masks, *ignored) if mask is not None]
    if not counts and not by_weight:
        return ops.cast(ops.shape(outputs[0])[0], "float32")
    if len(outputs) > 1:
        raise InvalidInputError(
            f"Micro-batches can't weigh {len(outputs)} outputs that have their own masks. Override "
            "`Trainer.train_step` and return the loss and its weight."
        )
    is_shown = masks[0]
    if ignored and ignored[0] is not None:
        classes = ops.convert_to_tensor(keras.tree.flatten(y)[0])
        if len(classes.shape) == len(outputs[0].shape):
            classes = ops.squeeze(classes, -1)
        is_class = ops.not_equal(classes, ignored[0])
        is_shown = is_class if is_shown is None else ops.logical_and(is_shown, is_class)
    if not by_weight:
        return ops.sum(ops.cast(is_shown, "float32"))
    shape = ops.shape(outputs[0])[:-1] if is_shown is None else ops.shape(is_shown)
    weights = ops.ones(shape, "float32") if is_shown is None else ops.cast(is_shown, "float32")
    if sample_weight is not None:
        row_weights = ops.cast(keras.tree.flatten(sample_weight)[0], "float32")
        missing = len(weights.shape) - len(row_weights.shape)
        weights = weights * ops.reshape(row_weights, (*ops.shape(row_weights), *[1] * missing))
    return ops.sum(weights)
