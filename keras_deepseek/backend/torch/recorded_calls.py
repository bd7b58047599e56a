"""Functions that a recording calls as they are, though what they do depends on numbers."""

from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch

from keras_deepseek.backend.torch.tracing import IS_RECORDED

Functions = list[Callable[..., torch.Tensor]]

FUNCTIONS: ContextVar[Functions | None] = ContextVar("functions", default=None)
"""Those of the recording that is made or run: so they live as long as it does."""


def can_run_apart() -> bool:
    """Whether `run_apart` is of use: operations are recorded, which can keep a call as it is."""
    return IS_RECORDED.get() and FUNCTIONS.get() is not None


def run_apart(function: Callable[..., Any], *tensors: Any) -> Any:
    """Returns `function(*tensors)`, of which a recording keeps the call, not what it did."""
    functions = FUNCTIONS.get()
    if functions is None:
        return function(*tensors)
    functions.append(function)
    return _operation()(len(functions) - 1, list(tensors))


@cache
def _operation() -> Callable[[int, list[torch.Tensor]], torch.Tensor]:
    # Only operations of PyTorch are recorded, so that the call has to be one. It is not defined
    # when this module is imported, and the library has to live as long as it.
    library = torch.library.Library("keras_deepseek", "FRAGMENT")
    library.define("run_apart(int number, Tensor[] tensors) -> Tensor")

    def run(number: int, tensors: list[torch.Tensor]) -> torch.Tensor:
        functions = FUNCTIONS.get()
        if functions is None:
            raise RuntimeError(
                "`keras_deepseek::run_apart` was called outside of the recording that it is of."
            )
        token = IS_RECORDED.set(False)
        try:
            return functions[number](*tensors)
        finally:
            IS_RECORDED.reset(token)

    library.impl("run_apart", run, "CompositeExplicitAutograd")
    _LIBRARIES.append(library)
    operation: Callable[..., torch.Tensor] = torch.ops.keras_deepseek.run_apart.default
    return operation


_LIBRARIES: list[torch.library.Library] = []
