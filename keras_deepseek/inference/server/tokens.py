"""Access tokens, and the permission to load and unload models that needs one.

They know no protocol: over HTTP and gRPC alike a client sends `authorization: Bearer TOKEN`.
"""

import hashlib
import hmac
import ipaddress
import logging
import os
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.errors import NotPermittedError

LOOK_SECONDS = 1.0
"""The shortest time between two checks whether the token file has changed."""

Tokens = Sequence[str] | os.PathLike[str]
"""Access tokens, or the path of a file with one in each line."""

ModelControlMode = Literal["none", "explicit"]
"""Triton's words: `"explicit"` lets clients load and unload models, `"none"` does not."""

_logger = logging.getLogger(__name__)


class TokenCheck:
    """Compares the token of a request with the valid ones, in a time that reveals nothing of them.

    A changed file is read again. If it can't be read then, or holds no tokens, the old tokens stay
    valid, and the log says so once. A file has a token in each line, of visible ASCII characters.
    Empty lines and lines that begin with `#` are skipped.
    """

    def __init__(
        self,
        tokens: Tokens,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._path: Path | None = None
        self._mark: tuple[int, int, int] | None = None
        self._looked = clock()
        self._has_failed = False
        if isinstance(tokens, os.PathLike):
            self._path = Path(tokens)
            # Before reading, so that a change during the read is noticed.
            self._mark = _mark_of(self._path)
            tokens = _read_file(self._path)
        self._digests = _digests_of(tokens)

    def allows(self, authorization: str | None) -> bool:
        """Returns true if the header `Authorization` has a valid token."""
        if self._path is not None and self._clock() - self._looked >= LOOK_SECONDS:
            self._look(self._path)
        scheme, _, token = (authorization or "").partition(" ")
        digest = _digest(token.strip())
        # `any` would stop early. A sum compares all tokens, so the time reveals nothing.
        fitting = sum(hmac.compare_digest(digest, known_digest) for known_digest in self._digests)
        return fitting > 0 and scheme.lower() == "bearer"

    def _look(self, path: Path) -> None:
        self._looked = self._clock()
        mark = _mark_of(path)
        if mark is not None and mark == self._mark:
            return
        try:
            self._digests = _digests_of(_read_file(path))
        except InvalidInputError as error:
            # The old mark stays, so that the next check tries again.
            if not self._has_failed:
                self._has_failed = True
                _logger.warning("The old tokens stay valid. %s", error)
        else:
            self._mark, self._has_failed = mark, False


class ModelControl:
    """The permission to load, unload and replace models by calls over HTTP or gRPC.

    It is off by default, because whoever may ask for predictions could otherwise unload the model.
    """

    def __init__(self, mode: ModelControlMode, tokens: Tokens | None) -> None:
        if mode not in ("none", "explicit"):
            raise InvalidInputError(
                f'`model_control` must be "none" or "explicit", received {mode!r}.'
            )
        if mode == "explicit" and tokens is None:
            raise InvalidInputError(
                'Received model_control="explicit" without `management_tokens`. Give the tokens '
                "with which clients may load and unload models (--management-token-file)."
            )
        if mode == "none" and tokens is not None:
            raise InvalidInputError(
                'Received `management_tokens` without model_control="explicit" '
                "(--model-control explicit). Add it, or remove the tokens."
            )
        self._tokens = None if tokens is None else TokenCheck(tokens)

    @property
    def is_on(self) -> bool:
        """True if some clients may load and unload models."""
        return self._tokens is not None

    def check(self, authorization: str | None) -> None:
        """Raises `NotPermittedError` unless model control is on, and a header has its token.

        `authorization` is the header `Authorization`, or gRPC's metadata of this name.
        """
        if self._tokens is None:
            raise NotPermittedError(
                "This server does not load or unload models for clients. Start it with "
                "--model-control explicit and --management-token-file FILE to allow that."
            )
        if not self._tokens.allows(authorization):
            raise NotPermittedError(
                "Loading and unloading models needs a management token. Send one of those in "
                "--management-token-file as authorization: Bearer TOKEN."
            )


def warn_of_strangers(host: str, *, has_tokens: bool) -> None:
    """Warns if other machines can reach a server without TLS.

    With tokens, they can be read on the way; without, everybody can use the models.
    """
    if is_loopback(host):
        return
    if has_tokens:
        text = "Tokens and requests cross the network in clear text. Give a TLS certificate"
    else:
        text = (
            f"Everybody who can reach {host!r} can use the models, and read the requests of "
            "others. Give `tokens` and a TLS certificate"
        )
    warnings.warn(f"{text}, or listen at 127.0.0.1.", stacklevel=3)


def is_loopback(host: str) -> bool:
    """Returns true if only this machine can reach a host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _digests_of(tokens: Sequence[str]) -> tuple[bytes, ...]:
    is_list = isinstance(tokens, Collection) and not isinstance(tokens, str)
    if not is_list or not all(isinstance(token, str) for token in tokens):
        raise InvalidInputError(
            "`tokens` must be a list of strings, as in tokens=[token], or a `pathlib.Path` of a "
            f"file with one token in each line; received a {type(tokens).__name__}."
        )
    if not tokens:
        raise InvalidInputError(
            "`tokens` is empty, so that all requests would be refused. Give at least one token."
        )
    for number, token in enumerate(tokens, 1):
        if not (token.isascii() and token.isprintable() and token and " " not in token):
            # The message has no token: it may be logged.
            raise InvalidInputError(
                f"Token {number} is empty, or has a space or another character that no client "
                "can send. Expected visible ASCII characters."
            )
    # Digests have equal lengths, so the time does not reveal the length of a token.
    return tuple(_digest(token) for token in tokens)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _mark_of(path: Path) -> tuple[int, int, int] | None:
    """Returns a value that changes when a file is replaced, or `None` if the file is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read_file(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"Can't read the tokens in {str(path)!r}: {error}. Expected a text file with one token "
            "in each line."
        ) from error
    stripped = [line.strip() for line in lines]
    tokens = [line for line in stripped if line and not line.startswith("#")]
    if not tokens:
        raise InvalidInputError(
            f"There is no token in {str(path)!r}. Write one token in each line."
        )
    return tokens
