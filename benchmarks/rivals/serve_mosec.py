"""The simulated accelerator behind mosec: `serve_mosec.py PORT WAIT_MILLISECONDS`."""

import os
import sys
from typing import Any

import numpy as np
from accelerator import Accelerator
from mosec import Server, Worker

# mosec has a parser of its own, and starts this file again for its workers.
if "MOSEC_WAIT" not in os.environ:
    port, os.environ["MOSEC_WAIT"] = sys.argv[1:]
    sys.argv[1:] = ["--port", port, "--address", "127.0.0.1"]


class Doubler(Worker):
    """What mosec runs in a process of its own."""

    def __init__(self) -> None:
        self._accelerator = Accelerator()

    def forward(self, data: list[Any]) -> list[Any]:
        """Returns an answer for each request."""
        x = np.array([request["instances"][0] for request in data], "float32")
        return [{"predictions": [row.tolist()]} for row in self._accelerator.run(x)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Doubler, num=1, max_batch_size=32, max_wait_time=int(os.environ["MOSEC_WAIT"])
    )
    server.run()
