"""The record of a version that failed: the reason, without the model."""

from dataclasses import dataclass
from typing import Literal

MOST_CHARACTERS = 1000
"""The limit for an error's text: a runtime may print a whole graph."""


@dataclass(frozen=True)
class FailedVersion:
    """A version that could not be loaded or warmed up.

    The exception itself is not kept: its traceback would keep the model in memory. `kind` is its
    class.
    """

    number: int
    kind: str
    error: str

    @property
    def state(self) -> Literal["END"]:
        """The version's state in TF Serving's words."""
        return "END"

    @classmethod
    def of(cls, number: int, error: BaseException) -> "FailedVersion":
        """Returns the record of a version that failed with an error."""
        kind = type(error).__name__
        return cls(number, kind, f"{kind}: {error}"[:MOST_CHARACTERS])
