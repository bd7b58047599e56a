"""Which compression of gradients suits the links between processes: it is measured."""

import logging
import math
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek.backend.processes.gradient_compression import (
    Compression,
    Kind,
    LowRank,
    begin_residual,
)
from keras_deepseek.backend.processes.processes import FinishPart, Processes, RemoteReplicas

_logger = logging.getLogger(__name__)

_CHOICES: tuple[Kind | None, ...] = (None, "bfloat16", LowRank())
_LEAST_GAIN = 0.7
"""What is further from the gradients must take at most so much of the time to be chosen."""

_MOST_WEIGHTS = 2**21
_REPEATS = 3


def choose_compression(
    shapes: Sequence[Sequence[int]], processes: Processes, replicas: RemoteReplicas
) -> Kind | None:
    """Returns how gradients are to be compressed, `None` for not at all; all ranks call it.

    Some of them, made up, are summed in each way. Of two ways of about the same speed it is the
    one that is nearer to the gradients.

    Args:
        shapes: Those of the gradients.
        processes: `Processes` that train together.
        replicas: `RemoteReplicas`, theirs.

    Raises:
        PeerLostError: Another process has ended, or does not answer.
    """
    if not shapes:
        return None
    sample = _sample(shapes)
    seconds = {kind: _time_sums(kind, sample, replicas) for kind in _CHOICES}
    # Ranks may have measured differently.
    seconds = processes.broadcast(seconds)
    chosen = _CHOICES[0]
    for kind in _CHOICES[1:]:
        if seconds[kind] <= _LEAST_GAIN * seconds[chosen]:
            chosen = kind
    _logger.info(
        "gradient_compression='auto': to sum %.1f M numbers of gradients takes %s. Taken: %s.",
        1e-6 * sum(map(math.prod, sample)),
        ", ".join(f"{_name(kind)} {each:.3f} s" for kind, each in seconds.items()),
        _name(chosen),
    )
    return chosen


def _name(kind: Kind | None) -> str:
    return "float32" if kind is None else str(kind)


def _sample(shapes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Returns the largest of shapes, up to so many numbers; one that has more is cut."""
    found: list[tuple[int, ...]] = []
    left = _MOST_WEIGHTS
    for shape in sorted(map(tuple, shapes), key=math.prod, reverse=True):
        size = math.prod(shape)
        if size > left:
            if not found:
                rows = max(1, left // math.prod(shape[1:]))
                found.append((rows, *shape[1:]))
            break
        found.append(shape)
        left -= size
    return found


def _time_sums(
    kind: Kind | None, shapes: Sequence[tuple[int, ...]], replicas: RemoteReplicas
) -> float:
    """Returns the seconds that the sums of gradients take, a median."""
    random = np.random.default_rng(0)
    gradients = [
        ops.convert_to_tensor(random.standard_normal(shape, "float32")) for shape in shapes
    ]
    variables = [keras.Variable(np.zeros(shape, "float32")) for shape in shapes]
    compression = None
    if kind is not None:
        residual = replicas.own_variable(begin_residual(kind, shapes), "gradient_residual")
        compression = Compression(kind, residual, 1.0)
    one = ops.ones(())

    def compute(*_: Any) -> tuple[list[Any], FinishPart]:
        return [one], lambda *_: ([one], gradients)

    def sum_once() -> None:
        if compression is None:
            sums = replicas.sum(compute, None, variables)[2]
        else:
            *_, sums, keep = replicas.sum_compressed(compute, None, variables, compression)
            keep()
        for each in sums:  # It waits for them.
            ops.convert_to_numpy(each)

    seconds = []
    for _ in range(1 + _REPEATS):  # The first makes what the others use.
        began = time.perf_counter()
        sum_once()
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])
