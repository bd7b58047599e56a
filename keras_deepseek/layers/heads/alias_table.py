"""Walker's alias method: to draw from any distribution over classes in two steps of work."""

from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array


def make_alias_table(probabilities: Any) -> tuple[Array, Array]:
    """Returns what a draw goes by: draw a class evenly, keep it by its chance, or take its alias.

    Args:
        probabilities: Array of shape `(num_classes,)`, whose sum is 1.

    Returns:
        A pair of arrays of that shape: the chances, float32, and the aliases, int32.
    """
    # Each class is a column of height 1; those that are too high fill up those that are too low.
    heights = np.asarray(probabilities, "float64") * len(probabilities)
    chances = np.ones(len(heights))
    aliases = np.arange(len(heights), dtype="int32")
    low = list(np.flatnonzero(heights < 1))
    high = list(np.flatnonzero(heights >= 1))
    while low and high:
        filled, giver = low.pop(), high[-1]
        chances[filled], aliases[filled] = heights[filled], giver
        heights[giver] -= 1 - heights[filled]
        if heights[giver] < 1:
            low.append(high.pop())
    # What is left is 1 to rounding, unless a class of no height were never to be drawn at all.
    for rest in low:
        if probabilities[rest] == 0:
            chances[rest], aliases[rest] = 0.0, int(np.argmax(probabilities))
    return chances.astype("float32"), aliases
