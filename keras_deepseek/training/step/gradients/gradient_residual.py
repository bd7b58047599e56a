"""The residual of gradient compression, which is added to the next gradient (error feedback).

Each rank has its own residual. A checkpoint, written by rank 0, holds the residuals of all ranks.
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
from keras_deepseek.errors import InvalidInputError

_logger = logging.getLogger(__name__)

_DTYPES = ("bfloat16", "float16")
_LOW_RANK = "low_rank"

GradientCompression = Literal["bfloat16", "float16", "low_rank"] | LowRank


class GradientResidual:
    """The residual of the compressed gradients of one rank (Seide et al., 2014)."""

    def __init__(self, kind: Kind, processes: Processes, replicas: RemoteReplicas) -> None:
        self._kind = kind
        self._processes = processes
        self._replicas = replicas
        self._trained: list[int] = []
        self._has_warned = False
        self.variables: list[keras.Variable] = []
        """One variable for the residual of all gradients, once the model is built."""

    def prepare(self, trained: Sequence[keras.Variable]) -> None:
        """Creates the residual variable, anew if other weights are trained than before."""
        ids = [id(variable) for variable in trained]
        if ids == self._trained:
            return
        self._trained = ids
        self.variables = [self._replicas.own_variable(self._begin(trained), "gradient_residual")]

    def compression(self, scale: Any) -> Compression:
        """Returns the compression for a step with the given loss scale."""
        return Compression(self._kind, self.variables[0], scale)

    def read(self) -> dict[str, Any]:
        """Returns the compression residuals of all ranks. All ranks must call it."""
        own_values = [self._replicas.read_own(variable) for variable in self.variables]
        return {"values": [self._processes.gather(value) for value in own_values]}

    def write(self, trained: Sequence[keras.Variable], state: dict[str, Any] | None) -> None:
        """Restores this rank's compression residual from what `read` returned.

        The residual starts at zero, with a warning, if the checkpoint's does not fit, for example
        because it has another number of processes.
        """
        self.prepare(trained)
        (residual,) = self.variables
        values = state["values"][0] if state and state["values"] else []
        shapes = [value.shape for value in values]
        own_shape = self._replicas.read_own(residual).shape
        if shapes == [own_shape] * self._processes.world_size:
            self._replicas.write_own(residual, values[self._processes.rank])
            return
        # Repeated for each device of the process.
        self._replicas.write_own(residual, np.resize(self._begin(trained), own_shape))
        if self._processes.rank > 0 or self._has_warned:
            return
        self._has_warned = True
        _logger.warning(
            "The residual of gradient compression starts at zero: the checkpoint has residuals of "
            "%d processes with the shapes %s, and now %d processes train, with the shapes %s.",
            *(len(values), shapes[:1], self._processes.world_size, [own_shape]),
        )

    def _begin(self, trained: Sequence[keras.Variable]) -> Array:
        return begin_residual(self._kind, [tuple(variable.shape) for variable in trained])


def make_residual(compression: Any, processes: Processes) -> GradientResidual | None:
    """Creates the residual for the argument `gradient_compression`; `None` without compression."""
    if compression is None:
        return None
    kind = LowRank() if compression == _LOW_RANK else compression
    if not isinstance(kind, LowRank) and kind not in _DTYPES:
        raise InvalidInputError(
            "`gradient_compression` must be 'bfloat16', 'float16', 'low_rank' or a LowRank; "
            f"received {compression!r}."
        )
    if processes.replicas is not None:
        return GradientResidual(kind, processes, processes.replicas)
    raise InvalidInputError(
        f"gradient_compression={compression!r} compresses gradients between processes, and only "
        "one process trains. Start several by keras-deepseek launch, with "
        "distributed_strategy='allreduce', or remove gradient_compression."
    )
