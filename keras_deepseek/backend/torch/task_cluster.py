"""PyTorch has no parameter servers of its own: Ray starts them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_deepseek.backend.processes.task_cluster import TaskCluster
from keras_deepseek.errors import NotSupportedError


def serve_task(
    addresses: Mapping[str, Sequence[str]], task_type: str, index: int, on_ready: Callable[[], None]
) -> None:
    """Computes what the chief of a cluster has it compute, until the process is ended."""
    raise NotSupportedError("Tasks are TensorFlow's, and Keras runs on PyTorch.")


def connect_tasks(find_addresses: Callable[[], Mapping[str, Sequence[str]]]) -> TaskCluster:
    """Returns the workers and servers that this process is the chief of."""
    raise NotSupportedError("Tasks are TensorFlow's, and Keras runs on PyTorch.")


def adopt_tasks(strategy: Any) -> TaskCluster | None:
    """Returns the workers and servers that an object has connected to; `None` for another."""
    return None
