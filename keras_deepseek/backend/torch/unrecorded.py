"""Functions that a recorded step does not hold the operations of, but calls."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch

from keras_deepseek.backend.context_values import set_within

IS_RECORDED: ContextVar[bool] = ContextVar("is_recorded", default=False)
"""Whether operations are recorded, to be run again with other numbers: so none can be read."""


class UnrecordedFunctions:
    """The functions that a recording is to call, collected while a step is recorded."""

    current: ContextVar["UnrecordedFunctions | None"] = ContextVar("current", default=None)

    def __init__(self) -> None:
        self._functions: list[Callable[..., Any]] = []

    def record(self, function: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> Any:
        """Returns what a function makes of tensors, and puts one operation in the recording.

        Args:
            function: Function of tensors that returns one.
            tensors: Its arguments.
        """
        self._functions.append(function)
        return _call(len(self._functions) - 1, tensors)

    def run(self, index: int, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns what a collected function makes of tensors, whose numbers it may read.

        Args:
            index: integer. Which of the functions.
            tensors: Its arguments.
        """
        with set_within(IS_RECORDED, value=False):
            outputs: torch.Tensor = self._functions[index](*tensors)
        return outputs

    def replace_calls(self, recording: torch.fx.GraphModule) -> None:
        """Makes a recording call the functions themselves.

        Args:
            recording: `torch.fx.GraphModule`, recorded while these were collected.
        """
        for node in recording.graph.nodes:
            if node.target is torch.ops.keras_deepseek.unrecorded.default:
                index, tensors = node.args
                node.target, node.args = _name(self._functions[index]), tuple(tensors)
        recording.recompile()


@torch.library.custom_op("keras_deepseek::unrecorded", mutates_args=())
def _call(index: int, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stands in a recording for a function, until `replace_calls` puts it there."""
    functions = UnrecordedFunctions.current.get()
    assert functions is not None  # It is called in a block alone.
    return functions.run(index, tensors)


def _name(callable_object: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the same as a function: what a graph calls has to have a name."""

    def run(*tensors: torch.Tensor) -> Any:
        return callable_object(*tensors)

    return run
