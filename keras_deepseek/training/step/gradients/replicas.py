"""The gradients of a batch whose rows are divided among devices and processes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.processes.processes import Receive, RemoteReplicas, Replicas
from keras_deepseek.backend.tensor_values import multiply_gradients
from keras_deepseek.training.step.gradient_update import is_scaled
from keras_deepseek.training.step.gradients.batch_part import Part, PartFunction, make_summed_part
from keras_deepseek.training.step.gradients.gradient_residual import GradientResidual
from keras_deepseek.training.step.gradients.micro_batches import pad_empty_batch
from keras_deepseek.training.step.gradients.optimizer_parts import OptimizerParts
from keras_deepseek.training.step.gradients.replica_states import ReplicaStates
from keras_deepseek.training.step.gradients.weighted_sums import (
    MIN_WEIGHT,
    WeightedSums,
    make_zero_if_empty,
)
from keras_deepseek.training.step.loss.batch_loss import Batch, BatchLoss, count_rows


def sum_devices(
    part: PartFunction,
    model: keras.Model,
    devices: Replicas,
    batch: Batch,
    variables: Sequence[keras.Variable],
) -> Part:
    """Sums the gradients of the devices of this process, which divide the rows of the batch."""
    replica = ReplicaPart(model, part, devices, variables)
    scalars, (counts,), gradients = devices.sum(replica, batch, variables)
    return make_summed_part(replica.merge(scalars, counts, gradients)[0], count_rows(batch))


def sum_processes(
    part: PartFunction,
    model: keras.Model,
    replicas: RemoteReplicas,
    loss: BatchLoss,
    residual: GradientResidual | None,
    parts: OptimizerParts | None,
    batch: Batch,
    variables: Sequence[keras.Variable],
) -> Part:
    """Sums the gradients of this process's rows with those of all other processes.

    Gradients are sent while the backward pass computes others. `residual` is `None` without
    compression. With `parts`, the gradients are those of the parts that this process updates.
    """

    def find_divisor(sums: WeightedSums) -> Any:
        """Returns the divisor that turns sums into the loss of the whole batch."""
        return 1.0 if loss.is_sum else ops.maximum(sums.weight, MIN_WEIGHT)

    num_rows = None
    if loss.is_sum:  # Each part then needs the rows of the whole batch.
        num_rows = replicas.add_up(ops.cast(count_rows(batch), "float32"))
    optimizer = model.optimizer
    scale = optimizer.dynamic_scale if is_scaled(optimizer) else None
    keep_residual = None
    with loss.of_batch(num_rows):
        replica = ReplicaPart(model, part, replicas, variables, find_divisor)
        if parts is not None:
            scalars, (counts,), vectors = parts.replicas.sum_parts(
                replica, batch, variables, parts.division
            )
            gradients = parts.shape(vectors)
        elif residual is None:
            scalars, (counts,), gradients = replicas.sum(replica, batch, variables)
        else:
            # Compression sends gradients without the loss scale.
            compression = residual.compression(1.0 if scale is None else scale)
            scalars, (counts,), gradients, keep_residual = replicas.sum_compressed(
                replica, batch, variables, compression
            )
            if scale is not None:
                gradients = [gradient * scale for gradient in gradients]
        sums, num_rows = replica.merge(scalars, counts, gradients)
    gradients = sums.gradients if parts is None else parts.select(sums.gradients)
    divisor = find_divisor(sums)
    logs = {name: log / divisor for name, log in sums.logs.items()}
    means = WeightedSums(None, sums.loss / divisor, logs, [])
    return Part(means, num_rows, lambda: gradients, keep_residual=keep_residual)


class ReplicaPart:
    """Computes the gradients of one replica's rows at a time, and merges those of all replicas.

    A replica without rows computes one row of zeros, which has no weight.

    Args:
        find_divisor: Function of the summed `WeightedSums` that returns the divisor of the
            gradients. Defaults to `None`: gradients stay sums.
    """

    def __init__(
        self,
        model: keras.Model,
        part: PartFunction,
        replicas: Replicas,
        variables: Sequence[keras.Variable],
        find_divisor: Callable[[WeightedSums], Any] | None = None,
    ) -> None:
        self._part = part
        self._replicas = replicas
        self._variables = variables
        self._find_divisor = find_divisor
        self._states = ReplicaStates(model)
        self._form: WeightedSums | None = None
        self._has_gradient = [False for _ in variables]

    def __call__(self, rank: int, batch: Batch) -> tuple[list[Any], Callable[..., Any]]:
        """Runs a replica's forward pass.

        Returns:
            The scalars to sum over the replicas, and the replica's backward pass. The scalars are
            the number of rows, the weighted sums, and changes of states.
        """
        num_rows = ops.cast(count_rows(batch), "float32")
        if self._form is not None:  # This process has computed another replica before.
            self._states.restore()
        with self._states.replica_seeds(rank), self._replicas.own_random_numbers():
            part = self._part(pad_empty_batch(batch), self._variables)
        if self._form is None:
            self._form = part.sums
        zero_if_empty = make_zero_if_empty(num_rows)
        scalars = [zero_if_empty(scalar) for scalar in part.sums.scalars()]
        finish = functools.partial(self._finish, part, zero_if_empty)
        return [num_rows, *scalars, *self._states.changes(num_rows)], finish

    def _finish(
        self,
        part: Part,
        zero_if_empty: Callable[[Any], Any],
        scalars: Sequence[Any],
        receive: Receive | None,
    ) -> tuple[list[Any], list[Any]]:
        """Runs a replica's backward pass; returns which gradients exist, and those not received."""
        unsent: dict[int, Any] = {}
        exists = [False for _ in self._variables]

        def send(index: int, gradient: Any) -> None:
            gradient, shape = zero_if_empty(gradient), tuple(self._variables[index].shape)
            if gradient.shape != shape:  # A sparse gradient may lose its static shape.
                gradient = ops.reshape(gradient, shape)
            exists[index] = True
            if receive:
                receive(index, gradient)
            else:
                unsent[index] = gradient

        divisor = self._find_divisor(self._read(scalars)[1]) if self._find_divisor else None
        gradients = part.backward(divisor, send if receive else None)
        if divisor is None:
            gradients = multiply_gradients(gradients, part.factor)
        for index, gradient in enumerate(gradients):
            if gradient is not None:
                send(index, gradient)
        counts = list(map(float, exists))
        for index, has_gradient in enumerate(exists):
            self._has_gradient[index] |= has_gradient
            if not has_gradient:
                send(index, ops.zeros(self._variables[index].shape))
        return [ops.convert_to_tensor(counts)], [unsent.get(i) for i in range(len(exists))]

    def merge(
        self, scalars: Sequence[Any], counts: Any, gradients: Sequence[Any]
    ) -> tuple[WeightedSums, Any]:
        """Merges the replicas' states; returns the sums over all replicas and the number of rows.

        `counts` has, for each variable, the number of replicas that have a gradient.
        """
        num_rows, sums, changes = self._read(scalars)
        self._states.write(changes, num_rows)
        present = self._without_absent(gradients, counts)
        return sums.with_parts(sums.scalars(), present), num_rows

    def _read(self, scalars: Sequence[Any]) -> tuple[Any, WeightedSums, Sequence[Any]]:
        """Splits summed scalars into the number of rows, weighted sums and state changes."""
        if self._form is None:
            raise RuntimeError("No replica was computed.")
        num_rows, *summed = scalars
        end = len(self._form.scalars())
        return num_rows, self._form.with_parts(summed[:end], []), summed[end:]

    def _without_absent(self, gradients: Sequence[Any], counts: Any) -> list[Any]:
        """Returns the summed gradients, with `None` where no replica has a gradient.

        Replicas may differ: for example, their rows decide which experts are used.
        """
        read_counts = None
        if not all(self._has_gradient) and backend.current().compute.can_read_shapes(counts):
            read_counts = ops.convert_to_numpy(counts)

        def is_absent(index: int) -> bool:
            if self._has_gradient[index] or (read_counts is not None and read_counts[index]):
                return False
            # Compression may send a residual although this step has no gradient.
            return read_counts is None or not np.any(ops.convert_to_numpy(gradients[index]))

        return [None if is_absent(index) else gradient for index, gradient in enumerate(gradients)]
