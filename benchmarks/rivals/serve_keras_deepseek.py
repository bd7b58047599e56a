"""The simulated accelerator behind `ServingEngine`."""

import sys
from typing import Any

from accelerator import Accelerator

from keras_deepseek.artifacts import Signature, TensorSpec
from keras_deepseek.inference import ServingEngine

NUM_FEATURES = 16


class Executor:
    """What the engine runs."""

    signature = Signature(
        inputs=(TensorSpec("x", (None, NUM_FEATURES), "float32"),),
        outputs=(TensorSpec("y", (None, NUM_FEATURES), "float32"),),
    )

    def __init__(self) -> None:
        self._accelerator = Accelerator()

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns the doubled input."""
        return {"y": self._accelerator.run(inputs["x"])}


ServingEngine(Executor(), max_batch_size=32).serve(int(sys.argv[1]), block=True)
