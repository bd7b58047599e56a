"""The hints of one source, such as SLURM, about a process's place in a training."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from keras_deepseek.artifacts.network_address import parse_address
from keras_deepseek.errors import InvalidInputError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Hint(Generic[Value]):
    """A hinted value, with its origin (the variable or argument and its text) for errors.

    A derived value was computed from something else; a stated value of another source wins over it.
    """

    value: Value
    origin: str
    is_derived: bool = False


@dataclass(frozen=True)
class ClusterHints:
    """All hints of one source about this process; `None` for what it does not say.

    Args:
        local_rank: The rank among the processes of this machine.
        coordinator: The address of rank 0.
        task_type: TensorFlow's name for the kind of this process.
        workers: The addresses of chief and workers.
        servers: The addresses of parameter servers.
    """

    world_size: Hint[int] | None = None
    rank: Hint[int] | None = None
    local_rank: Hint[int] | None = None
    coordinator: Hint[str] | None = None
    task_type: str | None = None
    workers: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()


def read_text(environ: Mapping[str, str], name: str) -> str | None:
    """Returns the text of an environment variable, or `None` if it is unset or empty."""
    return environ.get(name, "").strip() or None


def read_integer(environ: Mapping[str, str], name: str, *, minimum: int = 0) -> Hint[int] | None:
    """Returns the integer of at least `minimum` in an environment variable; `None` if unset."""
    text = read_text(environ, name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < minimum:
        raise InvalidInputError(
            f"The environment variable {name} must hold a whole number of at least {minimum}; "
            f"received {text!r}."
        )
    return Hint(int(text), f"{name}={text}")


def check_addresses(source: str, addresses: Sequence[str]) -> None:
    """Raises an error if addresses of processes are malformed or not unique.

    `source` is the variable that holds them, for the error message.
    """
    counts = Counter(parse_address(f"Each address in {source}", text) for text in addresses)
    if twice := [f"{host}:{port}" for (host, port), count in counts.items() if count > 1]:
        raise InvalidInputError(
            f"{source} gives the address {twice[0]} to more than one process. Give each process an "
            "address of its own."
        )


def local_rank_among(addresses: Sequence[str], rank: int) -> int:
    """Returns a process's rank on its host: the number of lower ranks there.

    `addresses` are those of all processes, by rank.
    """
    hosts = [parse_address("An address", address)[0] for address in addresses]
    return hosts[:rank].count(hosts[rank])
