"""The problems of an object, which its user has to solve."""

from typing import NamedTuple


class Problem(NamedTuple):
    """What a condition of an object says."""

    reason: str
    """In CamelCase."""
    message: str
    """What is wrong, and what to do."""


class PlanError(Exception):
    """A problem that ends the planning of an object.

    Args:
        reason: The reason, in CamelCase.
        message: What is wrong, and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(reason, message)
