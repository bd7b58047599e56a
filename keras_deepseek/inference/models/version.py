"""The base class of a model's versions, their states, and the record of a version that failed."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.inference.errors import ClosedError, SignatureChangedError
from keras_deepseek.inference.models.model_options import ModelOptions

_logger = logging.getLogger(__name__)

MOST_CHARACTERS = 1000
"""The limit for an error's text: a runtime may print a whole graph."""

State = Literal["LOADING", "AVAILABLE", "UNLOADING", "END"]
"""TF Serving's words for the state of a version."""


class Version(ABC):
    """A version of a model that answers requests: a `ModelVersion` or a `TextVersion`.

    This is what `ServedModel`, the followed folders and the status routes know of it. Its life goes
    through the states from `"LOADING"` to `"END"`.
    """

    is_text: ClassVar[bool] = False
    """True for a language model, which takes texts and no tensors."""

    def __init__(self, name: str, number: int, options: ModelOptions) -> None:
        self.name = name
        self.number = number
        self.state: State = "LOADING"
        self.error: BaseException | None = None
        self.progress = ""
        """How far the warm-up is, for people; empty before and after it."""
        self._options = options

    @property
    @abstractmethod
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the inputs and outputs, as clients see them."""

    @property
    def renamed(self) -> Sequence[Signature]:
        """The signature under the names of replaced versions."""
        return ()

    def accept_names_of(self, version: "Version") -> None:  # noqa: B027 - Texts have no names.
        """Accepts requests by the name of a single input that a replaced version had, too."""

    def start(self) -> None:
        """Warms up the version, and accepts requests from then on.

        An error of the model ends the version.
        """
        try:
            if self._options.warm_up:
                self._warm_up()
        except BaseException as error:
            self.state, self.error = "END", error
            self._release()
            raise
        finally:
            self.progress = ""
        self._begin()
        self.state = "AVAILABLE"

    def check_available(self) -> None:
        """Raises a `ClosedError` unless the version is started and not closing."""
        if self.state != "AVAILABLE":
            raise ClosedError(
                f"Version {self.number} of the model {self.name!r} is {self.state.lower()}."
            )

    def close(self, seconds: float | None = None) -> None:
        """Refuses new requests, and returns when the accepted ones are answered.

        Requests not answered within `seconds` get a `ClosedError`. What runs then is abandoned, or
        its process is killed.
        """
        self.state = "UNLOADING"
        has_ended = self._end(seconds)
        if not has_ended:
            _logger.error(
                "Version %d of the model %r did not end in time; what it runs is abandoned.",
                self.number,
                self.name,
            )
        self._release(is_idle=has_ended)
        self.state = "END"
        _logger.info("Version %d of the model %r is closed.", self.number, self.name)

    @abstractmethod
    def _warm_up(self) -> None:
        """Runs the model in all shapes that requests will have."""

    @abstractmethod
    def _begin(self) -> None:
        """Starts the threads that run the model."""

    @abstractmethod
    def _end(self, seconds: float | None) -> bool:
        """Answers the accepted requests, and ends the threads. Returns False if one still runs."""

    @abstractmethod
    def _release(self, *, is_idle: bool = True) -> None:
        """Frees the model. With `is_idle` false, a thread may still run it."""


@dataclass(frozen=True)
class FailedVersion:
    """A version that could not be loaded or warmed up.

    The exception itself is not kept, because its traceback would keep the model in memory. `kind`
    is the name of its class. One that `is_waiting` could be served, but its signature has changed.
    """

    number: int
    kind: str
    error: str
    is_waiting: bool = False

    @property
    def state(self) -> Literal["START", "END"]:
        """The version's state in TF Serving's words."""
        return "START" if self.is_waiting else "END"

    @classmethod
    def of(cls, number: int, error: BaseException) -> "FailedVersion":
        """Returns the record of a version that failed with an error."""
        kind = type(error).__name__
        if isinstance(error, SignatureChangedError):
            return cls(number, kind, str(error), is_waiting=True)
        return cls(number, kind, f"{kind}: {error}"[:MOST_CHARACTERS])
