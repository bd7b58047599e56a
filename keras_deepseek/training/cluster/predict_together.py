"""Prediction by several processes. Each gets the outputs of all rows."""

from typing import Any

import keras
import numpy as np

from keras_deepseek.backend.processes.processes import Processes

_BATCH_SIZE = 32  # Keras's default.


def predict_together(model: keras.Model, x: Any, processes: Processes, **options: Any) -> Any:
    """Returns the outputs of all rows, in their order, computed by all processes together.

    Model and inputs must be the same on each process. Each takes some of the rows of arrays. If the
    data come in batches, each predicts all.
    """
    if processes.world_size == 1:
        return model.predict(x, **options)
    if processes.rank > 0:
        options["verbose"] = 0
    if processes.is_one_program:
        with processes.whole_outputs(model):
            return model.predict(x, **options)
    arrays = keras.tree.flatten(x)
    if options.get("steps") is not None or not all(hasattr(array, "shape") for array in arrays):
        return model.predict(x, **options)
    num_rows = arrays[0].shape[0]
    share = -(-num_rows // processes.world_size)
    first = processes.rank * share
    num_own_rows = min(max(num_rows - first, 0), share)
    # A process without rows predicts one and drops it: the empty outputs need a shape.
    begin = min(first, num_rows - 1)
    part = keras.tree.map_structure(lambda array: array[begin : begin + max(num_own_rows, 1)], x)
    batch_size = options.pop("batch_size", None) or _BATCH_SIZE
    options["batch_size"] = -(-batch_size // processes.world_size)
    outputs = model.predict(part, **options)
    return keras.tree.map_structure(
        lambda output: np.concatenate(processes.gather(output[:num_own_rows])), outputs
    )
