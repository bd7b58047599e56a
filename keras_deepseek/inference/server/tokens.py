"""Who may ask: the tokens that a server was given, and whether a request shows one of them.

It knows no protocol: over HTTP and over gRPC a client sends `authorization: Bearer TOKEN`.
"""

import hashlib
import hmac
import ipaddress
import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from keras_deepseek.errors import InvalidInputError

LOOK_SECONDS = 1.0
"""How often it is looked whether the file is another one: at most."""

_logger = logging.getLogger(__name__)


class TokenCheck:
    """Compares what clients show with the tokens, in a time that tells nothing of them.

    A file is read again when it has changed. What can't be read then, or holds no tokens, changes
    nothing: the tokens that there were stay, and the log says so once.

    Args:
        tokens: sequence of strings, or the path of a file with one in each line. Of visible
            characters of ASCII; lines that are empty or begin with `#` are passed over.
        clock: Function that returns the time in seconds. Defaults to `time.monotonic`.

    Raises:
        InvalidInputError: There is no token, or one that no client can send.
    """

    def __init__(
        self,
        tokens: Sequence[str] | os.PathLike[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._path: Path | None = None
        self._mark: tuple[int, int, int] | None = None
        self._looked = clock()
        self._has_failed = False
        if isinstance(tokens, os.PathLike):
            self._path = Path(tokens)
            # Before it is read: what is written meanwhile is read again.
            self._mark = _mark_of(self._path)
            tokens = _read_file(self._path)
        self._digests = _digests_of(tokens)

    def allows(self, authorization: str | None) -> bool:
        """Returns whether a request may be answered.

        Args:
            authorization: string or `None`. The value of its header `Authorization`.
        """
        if self._path is not None and self._clock() - self._looked >= LOOK_SECONDS:
            self._look(self._path)
        scheme, _, token = (authorization or "").partition(" ")
        digest = _digest(token.strip())
        # A sum, not `any`: all of them are compared whichever fits.
        fitting = sum(hmac.compare_digest(digest, own) for own in self._digests)
        return fitting > 0 and scheme.lower() == "bearer"

    def _look(self, path: Path) -> None:
        """Reads the file if it is not the one that was read last."""
        self._looked = self._clock()
        mark = _mark_of(path)
        if mark is not None and mark == self._mark:
            return
        try:
            self._digests = _digests_of(_read_file(path))
        except InvalidInputError as error:
            # The mark stays: it is tried again.
            if not self._has_failed:
                self._has_failed = True
                _logger.warning("The tokens that were read before stay in force. %s", error)
        else:
            self._mark, self._has_failed = mark, False


def warn_of_strangers(host: str) -> None:
    """Warns that a server that asks for nothing is reached by others than this machine.

    Args:
        host: string. A name or an address.
    """
    if not is_loopback(host):
        warnings.warn(
            f"Whoever reaches {host!r} may ask the models, and read what others ask. Give "
            "`tokens` and a TLS certificate, or listen at 127.0.0.1.",
            stacklevel=3,
        )


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches an address.

    Args:
        host: string. A name or an address.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _digests_of(tokens: Sequence[str]) -> tuple[bytes, ...]:
    if isinstance(tokens, str) or not all(isinstance(token, str) for token in tokens):
        raise InvalidInputError(
            "Received tokens that are no sequence of strings. Give a list, as "
            "tokens=[token], or a `pathlib.Path` of a file with one token in each line."
        )
    if not tokens:
        raise InvalidInputError("Received no token: nobody could ask anything.")
    for number, token in enumerate(tokens, 1):
        if not (token.isascii() and token.isprintable() and token and " " not in token):
            # The token itself does not belong into a log.
            raise InvalidInputError(
                f"Token {number} is empty, or has a space or another character that no client "
                "can send. Expected visible characters of ASCII."
            )
    # Of equal length, so that not even the length of a token is told by the time.
    return tuple(_digest(token) for token in tokens)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _mark_of(path: Path) -> tuple[int, int, int] | None:
    """Returns what tells a file from the one that was there before, or `None` where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read_file(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"Can't read the tokens of {str(path)!r}: {error}.") from error
    stripped = [line.strip() for line in lines]
    found = [line for line in stripped if line and not line.startswith("#")]
    if not found:
        raise InvalidInputError(f"There is no token in {str(path)!r}: nobody could ask anything.")
    return found
