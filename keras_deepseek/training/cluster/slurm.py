"""Reads the environment variables that SLURM sets for each task of an `srun`."""

import itertools
import re
from collections.abc import Iterator, Mapping

from keras_deepseek.artifacts.network_address import join_address
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.environment import ClusterHints, Hint, read_integer, read_text

_STEP = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NODELIST")
"""The variables that only `srun` sets. A batch script has all others, and looks like task 0."""

_FIRST_PORT, _NUM_PORTS = 12_000, 20_000
"""The ports are below 32768, where Linux's range of temporary ports begins."""


def read_slurm(environ: Mapping[str, str]) -> ClusterHints:
    """Reads this task's number, the number of tasks, and the first node as coordinator.

    If there are several tasks, this process must be one of them.
    """
    world_size = read_integer(environ, "SLURM_NTASKS", minimum=1)
    rank = read_integer(environ, "SLURM_PROCID")
    if not is_slurm_task(environ):
        if world_size is not None and world_size.value > 1:
            raise InvalidInputError(
                f"{world_size.origin}, and this process is none of these tasks: the others would "
                "never start. Start the script with srun, or with keras-deepseek launch; or unset "
                "SLURM_NTASKS."
            )
        return ClusterHints()
    return ClusterHints(
        world_size=world_size,
        rank=rank,
        local_rank=read_integer(environ, "SLURM_LOCALID"),
        coordinator=_derive_coordinator(environ),
    )


def is_slurm_task(environ: Mapping[str, str]) -> bool:
    """Returns True if `srun` started this process, and False in a batch script."""
    is_later = read_text(environ, "SLURM_PROCID") not in (None, "0")
    return is_later or any(read_text(environ, name) for name in _STEP)


def _derive_coordinator(environ: Mapping[str, str]) -> Hint[str] | None:
    """Derives an address for rank 0: the first node, and a port from the number of the job."""
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    name = next((name for name in names if read_text(environ, name)), None)
    job = read_integer(environ, "SLURM_JOB_ID") or read_integer(environ, "SLURM_JOBID")
    if name is None or job is None:
        return None
    step = read_integer(environ, "SLURM_STEP_ID") or read_integer(environ, "SLURM_STEPID")
    # Two steps of a job may run on the same node.
    number = 10 * job.value + (step.value if step else 0)
    host = next(expand_node_list(name, environ[name]))
    address = join_address(host, _FIRST_PORT + number % _NUM_PORTS)
    return Hint(address, f"{name}={environ[name]}", is_derived=True)


_NODES = re.compile(r"(?:[\w.-]|\[[^\[\]]*\])+")
_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")


def expand_node_list(source: str, text: str) -> Iterator[str]:
    """Returns the nodes of a list such as `node[08-10,7],login` one by one, in SLURM's order.

    `source` is the variable that holds the list. A malformed list is found before the first node is
    returned.
    """
    patterns = re.split(r",(?![^\[]*\])", text.strip())
    parts = []
    for pattern in patterns:
        if not _NODES.fullmatch(pattern):
            raise _malformed(source, text)
        # The parts in brackets have odd indices.
        pieces = re.split(r"[\[\]]", pattern)
        choices = [_read_ranges(source, text, inside) for inside in pieces[1::2]]
        parts.append((pieces[::2], choices))
    return itertools.chain.from_iterable(_combine(*part) for part in parts)


def _combine(outside: list[str], choices: list[list[tuple[int, int, int]]]) -> Iterator[str]:
    """Yields each name made of the texts outside of brackets, with a number for each bracket."""
    if not choices:
        yield outside[0]
        return
    for number in _count(choices[0]):
        for ending in _combine(outside[1:], choices[1:]):
            yield outside[0] + number + ending


def _count(ranges: list[tuple[int, int, int]]) -> Iterator[str]:
    for first, last, width in ranges:
        for number in range(first, last + 1):
            yield str(number).zfill(width)


def _read_ranges(source: str, text: str, inside: str) -> list[tuple[int, int, int]]:
    """Returns the first number, the last number and the digit count of each range."""
    ranges = []
    for item in inside.split(","):
        match = _NUMBERS.fullmatch(item)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise _malformed(source, text)
        ranges.append((int(match[1]), int(match[2] or match[1]), len(match[1])))
    return ranges


def _malformed(source: str, text: str) -> InvalidInputError:
    return InvalidInputError(
        f"{source} must be a list of nodes as in 'node[01-03,7],login'; received {text!r}."
    )
