"""The errors that every room raises for mistakes that a user can correct.

The command line prints any of them as one line and exits with code 2. Any other exception is a bug
of this package and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "BundleError",
    "CheckpointError",
    "ExportError",
    "InvalidInputError",
    "KerasDeepSeekError",
    "MissingExtraError",
    "NotSupportedError",
    "PeerLostError",
    "TrainingDivergedError",
]

MESSAGE_LENGTH = 500
"""The most characters of a message about a field, whose value may have millions."""


class KerasDeepSeekError(Exception):
    """The base class of errors that the user can correct; messages say what to do."""


class InvalidInputError(KerasDeepSeekError, ValueError):
    """The error for an argument, request or file of an unexpected type, value or form."""


class InvalidFieldError(InvalidInputError):
    """The error for one field of a request, whose name clients may read beside the message.

    Args:
        field: string. The name of the field, as in the request.
        message: string. What was received, and what was expected. A long one is cut.
        code: string or `None`. OpenAI's code of the error, if it has one.
    """

    def __init__(self, field: str, message: str, code: str | None = None) -> None:
        self.field = field
        self.code = code
        is_long = len(message) > MESSAGE_LENGTH
        super().__init__(f"{message[:MESSAGE_LENGTH]} ..." if is_long else message)


class NotSupportedError(KerasDeepSeekError, RuntimeError):
    """The error for a valid call that this release, backend or machine can't carry out."""


class MissingExtraError(KerasDeepSeekError, ImportError):
    """The error for an optional dependency that is not installed.

    Args:
        package: string. The package that could not be imported.
        extra: string. The extra of `keras_deepseek` that installs it.
        purpose: string. The purpose, as in "to export ONNX".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"`{package}` is needed {purpose} and is not installed. "
            f"Install it with: pip install 'keras_deepseek[{extra}]'"
        )
        self.package = package
        self.extra = extra


class BundleError(KerasDeepSeekError):
    """The error for a bundle that is missing, incomplete, modified, or of a newer version."""


class CheckpointError(KerasDeepSeekError):
    """The error for a checkpoint that is damaged or can't be written."""


class TrainingDivergedError(KerasDeepSeekError):
    """The error for a training whose loss or gradients are not finite, or whose loss has jumped."""


class PeerLostError(KerasDeepSeekError):
    """The error for a process of a distributed training that fails to join, ends or goes silent."""


class ExportError(KerasDeepSeekError):
    """The error for a failed export, or an artifact whose outputs differ from the model's."""


def unknown_name_message(kind: str, received: object, accepted_names: Iterable[str]) -> str:
    """Returns the error message for an unknown name, with the nearest known one.

    Args:
        kind: string. The kind of name, as in "export format".
        received: The unknown name.
        accepted_names: The names to choose from.

    Example:

    >>> unknown_name_message("export format", "onxx", ["onnx", "savedmodel"])
    "Unknown export format 'onxx': did you mean 'onnx'? Known: onnx, savedmodel."
    """
    names = sorted(accepted_names)
    text = "" if isinstance(received, bool) else str(received).lower()
    nearest = difflib.get_close_matches(text, names, n=1)
    hint = f": did you mean {nearest[0]!r}?" if nearest else "."
    return f"Unknown {kind} {received!r}{hint} Known: {', '.join(names) or 'none'}."


def did_you_mean(received: Iterable[object], missing: Iterable[str]) -> str:
    """Returns a sentence with the missing name that is nearest to a received one, or `""`.

    Args:
        received: The unknown names.
        missing: The expected names that were not received.

    Example:

    >>> did_you_mean(["tokes", "mask"], ["tokens"])
    " Did you mean 'tokens' instead of 'tokes'?"
    """
    names = list(missing)
    for name in received:
        for nearest in difflib.get_close_matches(str(name).lower(), names, n=1):
            return f" Did you mean {nearest!r} instead of {name!r:.50}?"
    return ""
