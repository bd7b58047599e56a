"""Reading and setting of the masks that Keras attaches to tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import keras


def set_mask(tensor: Any, mask: Any) -> Any:
    """Attaches a mask that Keras does not replace to the output of a layer's `call`."""
    if mask is not None:
        keras.src.backend.set_keras_mask(tensor, mask)
    return tensor


def read_mask(tensor: Any) -> Any:
    """Returns the mask that Keras attached to a tensor, or `None`."""
    return keras.src.backend.get_keras_mask(tensor)


def output_masks(y_pred: Any) -> list[Any]:
    """Returns the mask of each output of a model, or `None` for each without one."""
    return [read_mask(output) for output in keras.tree.flatten(y_pred)]


def map_with_masks(function: Callable[[Any], Any], structure: Any) -> Any:
    """Maps a function over the tensors of a structure, and over their masks."""

    def run(leaf: Any) -> Any:
        result, mask = function(leaf), read_mask(leaf)
        if mask is not None and result is not leaf:
            keras.src.backend.set_keras_mask(result, function(mask))
        return result

    return keras.tree.map_structure(run, structure)


def split_floats(arguments: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """Returns the floating-point tensors among arguments, and a function that replaces them.

    The replacements get the masks that Keras put on the originals.
    """

    def is_float(leaf: Any) -> bool:
        return hasattr(leaf, "dtype") and keras.backend.is_float_dtype(
            keras.backend.standardize_dtype(leaf.dtype)
        )

    leaves = keras.tree.flatten(arguments)
    masks = output_masks(leaves)  # Read now, since Keras may remove them later.

    def put(floats: Sequence[Any]) -> Any:
        replacements = iter(floats)
        replaced = [next(replacements) if is_float(leaf) else leaf for leaf in leaves]
        for mask, leaf in zip(masks, replaced, strict=True):
            if mask is not None:
                keras.src.backend.set_keras_mask(leaf, mask)
        return keras.tree.pack_sequence_as(arguments, replaced)

    return [leaf for leaf in leaves if is_float(leaf)], put
