"""Processes that train together, which JAX's can't do yet."""

from keras_deepseek.artifacts.errors import NotSupportedError
from keras_deepseek.backend.processes import Processes


def join_processes(
    coordinator: str, world_size: int, rank: int, *, join_timeout: float, timeout: float
) -> Processes:
    """Returns the processes that train together, once all of them are there."""
    raise NotSupportedError(
        f"{world_size} processes can't train together on JAX yet. Set KERAS_BACKEND=torch, or "
        "train in one process."
    )
