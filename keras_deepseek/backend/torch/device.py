"""Which devices PyTorch sees."""

import torch


def count_devices(kind: str) -> int:
    """Returns how many devices of a kind (`"cpu"`, `"gpu"`, `"tpu"`) there are."""
    if kind == "gpu":
        return int(torch.cuda.device_count())
    return 1 if kind == "cpu" else 0
