"""The simulated accelerator behind Triton: `serve_pytriton.py PORT WAIT_MILLISECONDS`.

Triton's Python backend loads the system's `libpython`, so it needs the system's Python: one of
pyenv has another release of the standard library beside it.
"""

import sys
from typing import Any

import numpy as np
from accelerator import Accelerator
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

PORT, WAIT = map(int, sys.argv[1:])
ACCELERATOR = Accelerator()


@batch
def double(x: Any) -> dict[str, Any]:
    """Returns the doubled rows."""
    return {"y": ACCELERATOR.run(x)}


if __name__ == "__main__":
    config = TritonConfig(
        http_port=PORT, grpc_port=PORT + 1, metrics_port=PORT + 2, http_address="127.0.0.1"
    )
    batching = DynamicBatcher(max_queue_delay_microseconds=1000 * WAIT)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="m",
            infer_func=double,
            inputs=[Tensor(name="x", dtype=np.float32, shape=(16,))],
            outputs=[Tensor(name="y", dtype=np.float32, shape=(16,))],
            config=ModelConfig(max_batch_size=32, batcher=batching),
        )
        triton.serve()
