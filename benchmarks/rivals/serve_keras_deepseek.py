"""The simulated accelerator behind `ServingEngine`: `serve_keras_deepseek.py PORT [--grpc] ...`.

`--grpc` listens at the next port, too. `--isolated` runs the model in a process of its own. With
`--reloads` there is a model `other`, and on SIGUSR1 `model` gets its next version. What would take
longer than `--target-latency` is refused.
"""

import argparse
import signal
import threading
from typing import Any

from accelerator import Accelerator

from keras_deepseek.artifacts import Signature, TensorSpec
from keras_deepseek.inference import ServingEngine


class Executor:
    """What the engine runs."""

    def __init__(self) -> None:
        self._accelerator = Accelerator()
        self.signature = Signature(
            inputs=(TensorSpec("x", (None, self._accelerator.num_features), "float32"),),
            outputs=(TensorSpec("y", (None, self._accelerator.num_outputs), "float32"),),
        )

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns the accelerator's output."""
        return {"y": self._accelerator.run(inputs["x"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    for name in ("grpc", "isolated", "reloads"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--target-latency", type=float)
    arguments = parser.parse_args()
    engine = ServingEngine(
        "serve_keras_deepseek:Executor" if arguments.isolated else Executor(),
        max_batch_size=32,
        isolated=arguments.isolated,
        batch_timeout=2.0,
        target_latency=arguments.target_latency,
    )
    if arguments.reloads:
        engine.load(Executor(), name="other")
        signals = threading.Semaphore(0)
        signal.signal(signal.SIGUSR1, lambda *_: signals.release())
        threading.Thread(target=reload_when_told, args=(engine, signals), daemon=True).start()
    engine.serve(arguments.port, arguments.port + 1 if arguments.grpc else None, block=True)


def reload_when_told(engine: ServingEngine, signals: threading.Semaphore) -> None:
    """Loads the next version with each signal."""
    while signals.acquire():
        engine.load(Executor())


if __name__ == "__main__":
    main()
