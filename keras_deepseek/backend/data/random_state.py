"""The global random number generators: those of Python, NumPy, Keras and the framework.

Generators of a layer, such as that of `Dropout`, are variables of the model, and not here.
"""

import random
import sys
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.variables import (
    forget_global_seed,
    global_seed_state,
    has_global_seed,
)


def seed_generators(seed: int) -> None:
    """Seeds every global random number generator; `seed` is below 2**32.

    That includes PyTorch's if it is imported and Keras runs on another framework: its `DataLoader`
    draws the order of the data from it.
    """
    keras.utils.set_random_seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def read_random_state(*, makes_missing: bool = True) -> dict[str, Any]:
    """Returns a copy of the state of every global random number generator.

    `makes_missing` creates Keras's generator if there is none, with a seed from Python's.
    """
    seed_state = None
    if makes_missing or has_global_seed():  # Must be first: it may draw from Python's generator.
        seed_state = keras.ops.convert_to_numpy(global_seed_state()).copy()
    version, words, gauss = random.getstate()
    return {
        "keras": seed_state,
        "python": {"version": version, "words": np.array(words, "uint64"), "gauss": gauss},
        # NumPy's only global generator is the legacy one.
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "framework": backend.current().step.read_framework_random_state(),
    }


def write_random_state(state: dict[str, Any]) -> None:
    """Restores the states of all generators that `read_random_state` returned."""
    python = state["python"]
    words = tuple(int(word) for word in python["words"])
    if state["keras"] is None:
        forget_global_seed()
    else:
        global_seed_state().assign(state["keras"])
    random.setstate((int(python["version"]), words, python["gauss"]))
    np.random.set_state(state["numpy"])  # noqa: NPY002
    backend.current().step.write_framework_random_state(state["framework"])
