"""Expands SLURM's node lists, such as `node[01-03,7],login`."""

import itertools
import re
from collections.abc import Iterator

from keras_deepseek.errors import InvalidInputError

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
