"""The interface of batching policies, which say how long rows wait for more, and the fixed one.

`shape_queue` holds the rows and asks its policy. `adaptive_policy` is the policy that learns.
"""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

Occasion = Literal["idle", "freed"]
"""Why the model is free while rows wait: it was idle when the first of them came, or it finished a
batch.
"""


class Plan(NamedTuple):
    """The time when waiting rows leave, and the row count at which they leave earlier."""

    time: float
    rows: int


class BatchingPolicy(ABC):
    """A policy that says how long the rows of one queue wait while the model is free.

    A policy that learns overrides `begin`, `arrive` and `end`, which do nothing here.
    """

    def begin(self, occasion: Occasion, rows: int, now: float) -> None:  # noqa: B027
        """Notes that the model is free and rows wait."""

    def arrive(self, rows: int, now: float) -> None:  # noqa: B027
        """Notes that more rows have arrived."""

    def end(self, now: float) -> None:  # noqa: B027
        """Notes that the model is free and no rows wait."""

    @abstractmethod
    def plan(self, oldest: float) -> Plan:
        """Returns the time, and the number of rows, at which waiting rows leave.

        `oldest` is the time when the oldest of them came.
        """


class FixedPolicy(BatchingPolicy):
    """A policy that sends a batch at a fixed row count, or a fixed time after its oldest row."""

    def __init__(self, rows: int, wait: float) -> None:
        self._rows = rows
        self._wait = wait

    def plan(self, oldest: float) -> Plan:
        """Returns the fixed time and row count at which a batch leaves."""
        return Plan(oldest + self._wait, self._rows)
