"""What one source says of a process's place among those that train together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from keras_deepseek.artifacts.network_address import parse_address
from keras_deepseek.errors import InvalidInputError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Claim(Generic[Value]):
    """A value, and who says so.

    Args:
        value: What is claimed.
        origin: string. The variable or argument with what stands in it, for errors.
        is_derived: boolean. Whether it was concluded from something else, and so gives way to a
            source that states another. Defaults to `False`.
    """

    value: Value
    origin: str
    is_derived: bool = False


@dataclass(frozen=True)
class Claims:
    """All that one source says; `None` where it says nothing.

    Args:
        world_size: The number of processes. Defaults to `None`.
        rank: Which of them this one is. Defaults to `None`.
        local_rank: Which of those on this machine it is. Defaults to `None`.
        coordinator: The address of the process with rank 0. Defaults to `None`.
        task_type: string. What TensorFlow calls this process. Defaults to `None`.
        workers: tuple of strings. The addresses of those that compute. Defaults to `()`.
        servers: tuple of strings. The addresses of parameter servers. Defaults to `()`.
    """

    world_size: Claim[int] | None = None
    rank: Claim[int] | None = None
    local_rank: Claim[int] | None = None
    coordinator: Claim[str] | None = None
    task_type: str | None = None
    workers: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()


def read_text(environ: Mapping[str, str], name: str) -> str | None:
    """Returns a variable; `None` where it is empty, which is how scripts unset one.

    Args:
        environ: The environment.
        name: string. The variable.
    """
    return environ.get(name, "").strip() or None


def read_integer(environ: Mapping[str, str], name: str, *, least: int = 0) -> Claim[int] | None:
    """Returns what a variable says that holds a whole number.

    Args:
        environ: The environment.
        name: string. The variable.
        least: integer. The least that is allowed. Defaults to `0`.

    Raises:
        InvalidInputError: It holds something else.
    """
    text = read_text(environ, name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise InvalidInputError(
            f"The environment variable {name} must hold a whole number of at least {least}; "
            f"received {text!r}."
        )
    return Claim(int(text), f"{name}={text}")


def check_addresses(source: str, addresses: Sequence[str]) -> None:
    """Raises an error where a list of addresses can't be that of a cluster.

    Args:
        source: string. Where they were written, as the error names it.
        addresses: list of strings.

    Raises:
        InvalidInputError: One is malformed, or stands there twice.
    """
    counts = Counter(parse_address(f"Each address in {source}", text) for text in addresses)
    if twice := [f"{host}:{port}" for (host, port), count in counts.items() if count > 1]:
        raise InvalidInputError(
            f"{source} gives the address {twice[0]} to more than one process. Each listens at one "
            "of its own."
        )


def local_rank_among(addresses: Sequence[str], rank: int) -> int:
    """Returns how many of the processes before one are on the same host.

    Args:
        addresses: list of strings. Those of all processes, by rank.
        rank: integer. The process.
    """
    hosts = [parse_address("An address", address)[0] for address in addresses]
    return hosts[:rank].count(hosts[rank])
