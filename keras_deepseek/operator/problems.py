"""The problems of an object, which its user has to solve."""

from typing import NamedTuple

from pydantic import ValidationError


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


def describe_validation(error: ValidationError) -> str:
    """Returns the first error of a validation in a sentence."""
    (first, *_) = error.errors()
    # The last part can be the branch of a union that was tried.
    parts = [str(part) for part in first["loc"] if part not in ("int", "str", "constrained-str")]
    place = ".".join(parts)
    if first["type"] == "extra_forbidden":
        return f"{place}: there is no such field."
    if len(parts) < len(first["loc"]):
        return f"{place}: expected an integer or a text, received {first['input']!r}."
    return f"{place}: {first['msg'].removeprefix('Value error, ').rstrip('.')}."
