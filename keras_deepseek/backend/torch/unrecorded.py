"""Functions that a recorded step calls instead of recording their operations."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch

from keras_deepseek.backend.context_values import set_temporarily

IS_RECORDED: ContextVar[bool] = ContextVar("is_recorded", default=False)
"""True if operations are being recorded, to run again with other numbers. None can be read then."""


class UnrecordedFunctions:
    """The functions that a recording will call, collected while a step is recorded."""

    current: ContextVar["UnrecordedFunctions | None"] = ContextVar("current", default=None)

    def __init__(self) -> None:
        self._functions: list[Callable[..., Any]] = []

    def record(self, function: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> Any:
        """Returns `function(*tensors)`, and puts one operation for it into the recording."""
        self._functions.append(function)
        return _call(len(self._functions) - 1, tensors)

    def run(self, index: int, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns the result of a collected function, which may read numbers."""
        with set_temporarily(IS_RECORDED, value=False):
            outputs: torch.Tensor = self._functions[index](*tensors)
        return outputs

    def replace_calls(self, recording: torch.fx.GraphModule) -> None:
        """Makes a recording call the functions directly that were collected during it."""
        for node in recording.graph.nodes:
            if node.target is torch.ops.keras_deepseek.unrecorded.default:
                index, tensors = node.args
                node.target, node.args = _name(self._functions[index]), tuple(tensors)
        recording.recompile()


@torch.library.custom_op("keras_deepseek::unrecorded", mutates_args=())
def _call(index: int, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stands for a function in a recording, until `replace_calls` replaces it."""
    functions = UnrecordedFunctions.current.get()
    assert functions is not None  # It is only called inside of a recording.
    return functions.run(index, tensors)


def _name(callable_object: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a callable as a function: a graph calls functions with a name only."""

    def run(*tensors: torch.Tensor) -> Any:
        return callable_object(*tensors)

    return run
