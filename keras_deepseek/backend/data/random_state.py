"""The random number generators that a process shares: Python's, NumPy's, Keras's, the framework's.

Generators that belong to a layer, as that of `Dropout`, are variables of the model and not here.
"""

import random
import sys
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.keras_internals import (
    forget_global_seed,
    global_seed_state,
    has_global_seed,
)


def seed_generators(seed: int) -> None:
    """Seeds every generator that the process shares.

    PyTorch's as well where it is imported and Keras runs on another framework: its `DataLoader`
    draws the order of the data by it.

    Args:
        seed: integer from 0 to 2**32 - 1.
    """
    keras.utils.set_random_seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def read_random_state(*, makes_missing: bool = True) -> dict[str, Any]:
    """Returns the state of every generator that the process shares, as a copy.

    Args:
        makes_missing: boolean. Whether Keras's, where there is none yet, is made, by a number that
            Python's gives. Defaults to `True`.
    """
    seed_state = None
    if makes_missing or has_global_seed():  # First of all, for what it may take of Python's.
        seed_state = keras.ops.convert_to_numpy(global_seed_state()).copy()
    version, words, gauss = random.getstate()
    return {
        "keras": seed_state,
        "python": {"version": version, "words": np.array(words, "uint64"), "gauss": gauss},
        # The modern generators of NumPy are objects; this one alone is shared.
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "framework": backend.current().step.read_framework_random_state(),
    }


def write_random_state(state: dict[str, Any]) -> None:
    """Puts the generators into a state that `read_random_state` returned.

    Args:
        state: dict. The state.
    """
    python = state["python"]
    words = tuple(int(word) for word in python["words"])
    if state["keras"] is None:
        forget_global_seed()
    else:
        global_seed_state().assign(state["keras"])
    random.setstate((int(python["version"]), words, python["gauss"]))
    np.random.set_state(state["numpy"])  # noqa: NPY002
    backend.current().step.write_framework_random_state(state["framework"])
