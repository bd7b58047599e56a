"""What is remembered of a version that failed: why, and nothing of its model.

`served_model` keeps some for each model; `states` tells clients of them.
"""

from dataclasses import dataclass
from typing import Literal

MOST_CHARACTERS = 1000
"""Of an error's text: a runtime may print a whole graph."""


@dataclass(frozen=True)
class FailedVersion:
    """A version that could not be loaded, or did not warm up.

    The exception itself is not kept: its traceback holds all that was there when it was raised, the
    model among it.

    Args:
        number: integer. The version.
        kind: string. The class of the error.
        error: string. The class and the text of the error.
    """

    number: int
    kind: str
    error: str

    @property
    def state(self) -> Literal["END"]:
        """TF Serving's word for where it is in its life."""
        return "END"

    @classmethod
    def of(cls, number: int, error: BaseException) -> "FailedVersion":
        """Returns what is remembered of an error."""
        kind = type(error).__name__
        return cls(number, kind, f"{kind}: {error}"[:MOST_CHARACTERS])
