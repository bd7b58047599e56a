"""The states of PyTorch's default random generators."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


class DefaultGenerators:
    """Watches PyTorch's default generators while random numbers are drawn from them.

    A recording can't repeat what sets their state, such as a checkpoint that draws again the same.
    """

    def __init__(self) -> None:
        self.have_drawn = False
        self._states = read_generators()

    def were_set(self) -> bool:
        """Returns True if a state was set since the last draw."""
        return differ(read_generators(), self._states)

    def draw(self, func: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, bool]:
        """Returns the output of an operation, and True if it has drawn random numbers."""
        output = func(*args, **kwargs)
        old_states, self._states = self._states, read_generators()
        has_drawn = differ(old_states, self._states)
        self.have_drawn |= has_drawn
        return output, has_drawn


def read_generators() -> list[torch.Tensor]:
    """Returns the states of PyTorch's default generators."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(index) for index in devices)]


def write_generators(states: Sequence[torch.Tensor]) -> None:
    """Sets the states of PyTorch's default generators."""
    torch.set_rng_state(states[0])
    for index, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, index)


def differ(states: Sequence[torch.Tensor], other_states: Sequence[torch.Tensor]) -> bool:
    """Returns True if states of generators are not the same."""
    return not all(map(torch.equal, states, other_states))
