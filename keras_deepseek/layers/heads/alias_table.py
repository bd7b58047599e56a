"""Walker's alias method, which draws from any distribution over classes in constant time."""

from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array


def make_alias_table(probabilities: Any) -> tuple[Array, Array]:
    """Returns the acceptance chances (float32) and the aliases (int32) of an alias table.

    To draw a class, draw one uniformly, keep it with its chance, and otherwise take its alias. The
    probabilities, of shape `(num_classes,)`, sum to 1.
    """
    # Each class is a column of height 1: columns that are too high fill up columns too low.
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
    # The rest has height 1 up to rounding, except a class of probability 0, never to be drawn.
    for unpaired in low:
        if probabilities[unpaired] == 0:
            chances[unpaired], aliases[unpaired] = 0.0, int(np.argmax(probabilities))
    return chances.astype("float32"), aliases
