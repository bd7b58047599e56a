"""Lists the losses that a model was compiled with, flat or by output."""

from typing import Any

import keras


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
