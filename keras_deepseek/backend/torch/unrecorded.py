"""Functions that a recorded PyTorch step calls instead of recording their operations."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch

from keras_deepseek.backend.context_values import set_temporarily

IS_RECORDED: ContextVar[bool] = ContextVar("is_recorded", default=False)
"""True if operations are being recorded, to run again with other numbers. None can be read then."""


class UnrecordedFunctions:
    """The functions that a recording of a step will call, collected while it is made."""

    current: ContextVar["UnrecordedFunctions | None"] = ContextVar("current", default=None)

    def __init__(self) -> None:
        self._functions: list[Callable[..., Any]] = []

    def record(self, function: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> Any:
        """Returns `function(*tensors)`, and records one operation that stands for it."""
        self._functions.append(function)
        return _call(len(self._functions) - 1, tensors)

    def run(self, index: int, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Runs a collected function, which may read tensor values, and returns its result."""
        with set_temporarily(IS_RECORDED, value=False):
            outputs: torch.Tensor = self._functions[index](*tensors)
        return outputs

    def replace_calls(self, recording: torch.fx.GraphModule) -> None:
        """Replaces placeholders in a recording by direct calls of the collected functions."""
        for node in recording.graph.nodes:
            if node.target is torch.ops.keras_deepseek.unrecorded.default:
                index, tensors = node.args
                node.target, node.args = _name(self._functions[index]), tuple(tensors)
        recording.recompile()


@torch.library.custom_op("keras_deepseek::unrecorded", mutates_args=())
def _call(index: int, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stands for a collected function in a recording, until `replace_calls` replaces it."""
    functions = UnrecordedFunctions.current.get()
    assert functions is not None  # It is only called inside of a recording.
    return functions.run(index, tensors)


def _name(callable_object: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a callable as a function, since a recorded graph calls only functions with a name."""

    def run(*tensors: torch.Tensor) -> Any:
        return callable_object(*tensors)

    return run
