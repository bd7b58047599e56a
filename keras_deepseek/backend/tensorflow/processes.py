"""Processes that train together, which TensorFlow's can't do yet."""

from keras_deepseek.artifacts.errors import NotSupportedError
from keras_deepseek.backend.processes import Processes


def count_processes() -> int:
    """Returns how many processes the framework's engine runs in already."""
    return 1


def join_processes(
    coordinator: str, world_size: int, rank: int, *, join_timeout: float, timeout: float
) -> Processes:
    """Returns the processes that train together, once all of them are there."""
    raise NotSupportedError(
        f"{world_size} processes can't train together on TensorFlow yet. Set "
        "KERAS_BACKEND=torch, or train in one process."
    )
