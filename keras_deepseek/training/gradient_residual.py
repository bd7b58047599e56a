"""What rounding takes from the gradients that processes send each other, kept for the next step.

Each rank has its own: the checkpoints, which rank 0 takes, gather those of all.
"""

import logging
from collections.abc import Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np

from keras_deepseek.artifacts.errors import (
    InvalidInputError,
    NotSupportedError,
    unknown_name_message,
)
from keras_deepseek.backend.host_values import read_values
from keras_deepseek.backend.processes import Processes, Rounding

_logger = logging.getLogger(__name__)

ReductionDtype = Literal["float32", "bfloat16", "float16"]


class GradientResidual:
    """The residual of the gradients of one rank: error feedback (Seide et al., 2014).

    Args:
        dtype: string. What gradients are rounded to.
        processes: `Processes` that train together.
    """

    def __init__(self, dtype: ReductionDtype, processes: Processes) -> None:
        self._dtype = dtype
        self._processes = processes
        self._trained: list[int] = []
        self.variables: list[keras.Variable] = []
        """It, once the model is built: one variable for all gradients."""

    def prepare(self, trained: Sequence[keras.Variable]) -> None:
        """Makes the variable, anew where other weights are trained than before.

        Args:
            trained: The weights that have gradients.
        """
        ids = [id(variable) for variable in trained]
        if ids == self._trained:
            return
        self._trained = ids
        size = sum(int(np.prod(variable.shape)) for variable in trained)
        self.variables = [
            keras.Variable(
                np.zeros(size, "float32"),
                dtype="float32",
                trainable=False,
                autocast=False,
                name="gradient_residual",
            )
        ]

    def rounding(self, scale: Any) -> Rounding:
        """Returns how the replicas of a step are to round.

        Args:
            scale: Scalar, as for `Rounding`.
        """
        return Rounding(self._dtype, self.variables[0], scale)

    def read(self) -> dict[str, Any]:
        """Returns the residuals of all ranks, on each of them; all call it."""
        (own,) = read_values(self.variables)
        return {"values": self._processes.gather(own)}

    def write(self, trained: Sequence[keras.Variable], state: dict[str, Any] | None) -> None:
        """Puts this rank's residual to what `read` returned; to zeros where that does not fit.

        Args:
            trained: The weights that have gradients.
            state: dict, or `None` of a training that had no residuals.
        """
        self.prepare(trained)
        (residual,) = self.variables
        values = state["values"] if state else []
        shapes = [value.shape for value in values]
        if shapes == [tuple(residual.shape)] * self._processes.world_size:
            residual.assign(values[self._processes.rank])
            return
        residual.assign(np.zeros(residual.shape, "float32"))
        _logger.warning(
            "The training goes on without what rounding has taken from its gradients, which begins "
            "at zero: the checkpoint has it of %d processes, each %s, and here are %d, each %s.",
            *(len(values), shapes[:1], self._processes.world_size, [tuple(residual.shape)]),
        )


def make_residual(dtype: Any, processes: Processes) -> GradientResidual | None:
    """Returns what gradients that are reduced in a dtype need; `None` for float32.

    Args:
        dtype: What a user gave as `reduction_dtype`.
        processes: `Processes` that train together.

    Raises:
        InvalidInputError: It is none of the dtypes, or there is one process.
        NotSupportedError: The replicas are one program, whose compiler reduces.
    """
    known = get_args(ReductionDtype)
    if dtype not in known:
        raise InvalidInputError(unknown_name_message("reduction_dtype", dtype, known))
    if dtype == "float32":
        return None
    if processes.world_size == 1:
        raise InvalidInputError(
            f"reduction_dtype={dtype!r} is for gradients that are sent to other processes, and "
            "here is one that trains alone. Start several by keras-deepseek launch, with "
            "distributed_strategy='allreduce', or leave reduction_dtype out."
        )
    if processes.replicas is None:
        raise NotSupportedError(
            f"reduction_dtype={dtype!r} can't be had on {keras.backend.backend()}: one program "
            "runs over the devices of all processes, and its compiler decides where and in what "
            "dtype gradients are summed. Leave it out, or train on PyTorch or TensorFlow."
        )
    return GradientResidual(dtype, processes)
