"""The simulated accelerator behind LitServe: `serve_litserve.py PORT MILLISECONDS [restart]`."""

import sys
from typing import Any

import litserve
import numpy as np
from accelerator import Accelerator


class Doubler(litserve.LitAPI):
    """What LitServe runs."""

    def setup(self, device: str) -> None:
        """Makes the accelerator, in the process that runs it."""
        self._accelerator = Accelerator()

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Returns a row."""
        return np.array(request["instances"][0], "float32")

    def predict(self, x: Any) -> Any:
        """Returns the doubled rows."""
        return self._accelerator.run(np.stack(x) if isinstance(x, list) else x)

    def encode_response(self, output: Any) -> Any:
        """Returns an answer."""
        return {"predictions": [output.tolist()]}


if __name__ == "__main__":
    api = Doubler(max_batch_size=32, batch_timeout=int(sys.argv[2]) / 1000)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=1, restart_workers="restart" in sys.argv
    )
    server.run(
        port=int(sys.argv[1]), host="127.0.0.1", log_level="error", generate_client_file=False
    )
