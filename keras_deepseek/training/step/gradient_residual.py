"""What compression takes from the gradients that processes send each other, for the next step.

Each rank has its own: the checkpoints, which rank 0 takes, gather those of all.
"""

import logging
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.processes.gradient_compression import (
    Compression,
    Kind,
    LowRank,
    begin_residual,
)
from keras_deepseek.backend.processes.processes import Processes, RemoteReplicas
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.training.step.compression_choice import choose_compression

_logger = logging.getLogger(__name__)

_DTYPES = ("bfloat16", "float16")
_LOW_RANK, _AUTO = "low_rank", "auto"

GradientCompression = Literal["bfloat16", "float16", "low_rank", "auto"] | LowRank


class GradientResidual:
    """The residual of the gradients of one rank: error feedback (Seide et al., 2014).

    Args:
        kind: `Kind` of compression, or `"auto"`: which of them, if any, is measured for the links
            that there are. A training that goes on keeps to what it had.
        processes: `Processes` that train together.
        replicas: `RemoteReplicas`, theirs.
    """

    def __init__(
        self, kind: Kind | Literal["auto"], processes: Processes, replicas: RemoteReplicas
    ) -> None:
        self._is_chosen = kind == _AUTO
        self._kind: Kind | None = kind
        self._processes = processes
        self._replicas = replicas
        self._trained: list[int] = []
        self._has_warned = False
        self.variables: list[keras.Variable] = []
        """It, once the model is built: one variable for all gradients, or none."""

    def prepare(self, trained: Sequence[keras.Variable]) -> None:
        """Makes the variable, anew where other weights are trained than before.

        Args:
            trained: The weights that have gradients.
        """
        ids = [id(variable) for variable in trained]
        if ids == self._trained:
            return
        self._trained = ids
        if self._kind == _AUTO:
            shapes = [tuple(variable.shape) for variable in trained]
            self._kind = choose_compression(shapes, self._processes, self._replicas)
        self.variables = [
            self._replicas.own_variable(value, "gradient_residual")
            for value in self._begin(trained)
        ]

    def compression(self, scale: Any) -> Compression | None:
        """Returns how the replicas of a step are to compress; `None` where they are not.

        Args:
            scale: Scalar, as for `Compression`.
        """
        if self._kind is None:
            return None
        return Compression(self._kind, self.variables[0], scale)

    def read(self) -> dict[str, Any]:
        """Returns the residuals of all ranks, on each of them; all call it."""
        kind = self._kind
        return {
            "values": [
                self._processes.gather(self._replicas.read_own(own)) for own in self.variables
            ],
            "kind": _LOW_RANK if isinstance(kind, LowRank) else kind,
            "rank": kind.rank if isinstance(kind, LowRank) else None,
        }

    def adopt(self, state: dict[str, Any] | None) -> None:
        """Takes the kind of compression that a checkpoint was made with, where one is to be chosen.

        Args:
            state: dict, what `read` returned, or `None` of a training that had no residuals.
        """
        if not (self._is_chosen and state):
            return
        kind = LowRank(state["rank"]) if state["rank"] else state["kind"]
        if kind != self._kind:
            self._kind, self._trained = kind, []

    def write(self, trained: Sequence[keras.Variable], state: dict[str, Any] | None) -> None:
        """Puts this rank's residual to what `read` returned; to a new one where that does not fit.

        Args:
            trained: The weights that have gradients.
            state: dict, or `None` of a training that had no residuals.
        """
        self.adopt(state)
        self.prepare(trained)
        if not self.variables:
            return
        (residual,) = self.variables
        values = state["values"][0] if state and state["values"] else []
        shapes = [value.shape for value in values]
        own_shape = self._replicas.read_own(residual).shape
        if shapes == [own_shape] * self._processes.world_size:
            self._replicas.write_own(residual, values[self._processes.rank])
            return
        begin = np.resize(self._begin(trained)[0], own_shape)  # For each device of its own.
        self._replicas.write_own(residual, begin)
        if self._processes.rank > 0 or self._has_warned:
            return
        self._has_warned = True
        _logger.warning(
            "The training goes on without what compression has taken from its gradients, which "
            "begins at zero: the checkpoint has it of %d processes, each %s, and here are %d, each "
            "%s.",
            *(len(values), shapes[:1], self._processes.world_size, [own_shape]),
        )

    def _begin(self, trained: Sequence[keras.Variable]) -> list[Array]:
        shapes = [tuple(variable.shape) for variable in trained]
        return [] if self._kind is None else [begin_residual(self._kind, shapes)]


def make_residual(compression: Any, processes: Processes) -> GradientResidual | None:
    """Returns what gradients that are compressed need; `None` where they are not.

    Args:
        compression: What a user gave as `gradient_compression`.
        processes: `Processes` that train together.

    Raises:
        InvalidInputError: There is no such compression, or there is one process.
    """
    if compression is None:
        return None
    kind = LowRank() if compression == _LOW_RANK else compression
    known = (*_DTYPES, _LOW_RANK, _AUTO)
    if not isinstance(kind, LowRank) and kind not in known:
        raise InvalidInputError(unknown_name_message("gradient_compression", compression, known))
    if processes.replicas is not None:
        return GradientResidual(kind, processes, processes.replicas)
    if kind != _AUTO:
        raise InvalidInputError(
            f"gradient_compression={compression!r} is for gradients that are sent to other "
            "processes, and here is one that trains alone. Start several by keras-deepseek launch, "
            "with distributed_strategy='allreduce', or leave gradient_compression out."
        )
    return None  # Nothing is sent here.
