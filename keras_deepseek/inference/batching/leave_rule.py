"""When rows that could leave wait for others: what is asked of a rule, and the rule of fixed sizes.

`lane` holds the rows and asks; `wait_rule` is the rule that learns.
"""

from typing import Literal, NamedTuple, Protocol

Occasion = Literal["idle", "freed"]
"""How the model came to be free while rows wait: it was idle when the first of them came, or it
finished a batch and found them."""


class Plan(NamedTuple):
    """How long rows wait for company.

    Args:
        time: float. When they leave, in seconds of the clock.
        rows: integer. With how many rows they leave before that time.
    """

    time: float
    rows: int


class LeaveRule(Protocol):
    """Decides how long the rows of one lane wait while the model could take them."""

    def begin(self, occasion: Occasion, rows: int, now: float) -> None:
        """The model is free and rows wait.

        Args:
            occasion: string. How that came.
            rows: integer. How many rows wait.
            now: float. The time in seconds.
        """

    def arrive(self, rows: int, now: float) -> None:
        """More rows came."""

    def end(self, now: float) -> None:
        """The model is free and nothing waits."""

    def plan(self, oldest: float) -> Plan:
        """Returns how long rows wait.

        Args:
            oldest: float. When the oldest of them came.
        """


class FixedRule:
    """Rows leave when there are `rows` of them, or `wait` seconds after the oldest came.

    Args:
        rows: integer.
        wait: float. Seconds.
    """

    def __init__(self, rows: int, wait: float) -> None:
        self._rows = rows
        self._wait = wait

    def begin(self, occasion: Occasion, rows: int, now: float) -> None:
        """Nothing is learned from it."""

    def arrive(self, rows: int, now: float) -> None:
        """Nothing is learned from it."""

    def end(self, now: float) -> None:
        """Nothing is learned from it."""

    def plan(self, oldest: float) -> Plan:
        """Returns the one plan that there is.

        Args:
            oldest: float. When the oldest row came.
        """
        return Plan(oldest + self._wait, self._rows)
