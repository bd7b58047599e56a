"""Who may ask: the tokens that a server was given, and whether a request shows one of them.

It knows no protocol: over HTTP and over gRPC a client sends `authorization: Bearer TOKEN`.
"""

import hashlib
import hmac
import ipaddress
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from keras_deepseek.artifacts.errors import InvalidInputError


class TokenCheck:
    """Compares what clients show with the tokens, in a time that tells nothing of them.

    Args:
        tokens: sequence of strings, or the path of a file with one in each line. Of visible
            characters of ASCII; lines that are empty or begin with `#` are passed over.

    Raises:
        InvalidInputError: There is no token, or one that no client can send.
    """

    def __init__(self, tokens: Sequence[str] | os.PathLike[str]) -> None:
        found = _read_file(Path(tokens)) if isinstance(tokens, os.PathLike) else tokens
        if isinstance(found, str) or not all(isinstance(token, str) for token in found):
            raise InvalidInputError(
                "Received tokens that are no sequence of strings. Give a list, as "
                "tokens=[token], or a `pathlib.Path` of a file with one token in each line."
            )
        if not found:
            raise InvalidInputError("Received no token: nobody could ask anything.")
        for number, token in enumerate(found, 1):
            if not (token.isascii() and token.isprintable() and token and " " not in token):
                # The token itself does not belong into a log.
                raise InvalidInputError(
                    f"Token {number} is empty, or has a space or another character that no client "
                    "can send. Expected visible characters of ASCII."
                )
        # Of equal length, so that not even the length of a token is told by the time.
        self._digests = tuple(_digest(token) for token in found)

    def allows(self, authorization: str | None) -> bool:
        """Returns whether a request may be answered.

        Args:
            authorization: string or `None`. The value of its header `Authorization`.
        """
        scheme, _, token = (authorization or "").partition(" ")
        digest = _digest(token.strip())
        # A sum, not `any`: all of them are compared whichever fits.
        fitting = sum(hmac.compare_digest(digest, own) for own in self._digests)
        return fitting > 0 and scheme.lower() == "bearer"


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


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _read_file(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"Can't read the tokens of {str(path)!r}: {error}.") from error
    stripped = [line.strip() for line in lines]
    return [line for line in stripped if line and not line.startswith("#")]
