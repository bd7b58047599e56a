"""A model whose variables are on servers that the chief computes on itself, as on TensorFlow."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.host_values import read_values
from keras_deepseek.backend.processes.task_cluster import TaskCluster
from keras_deepseek.training.parameter_server.messages import ShardPlan, ShardValues
from keras_deepseek.training.parameter_server.shard_variables import ShardVariables
from keras_deepseek.training.parameter_server.shards import Shard


class RemoteModel:
    """Hands out a model's variables to workers, and updates them.

    What a worker has found waits in a slot of each server, which is its batch's alone, until the
    chief makes the update. A worker that dies leaves nothing behind but a slot that is written to
    once more, so that each update is made once and as a whole.

    Args:
        cluster: `TaskCluster`.
        plans: list of `ShardPlan`, one for each server.
        shards: list of `Shard`.
        values: list of `ShardValues`.
        frozen: list of NumPy arrays. What no update changes.
        num_slots: integer. How many batches may be under way.
    """

    def __init__(
        self,
        cluster: TaskCluster,
        plans: Sequence[ShardPlan],
        shards: Sequence[Shard],
        values: Sequence[ShardValues],
        frozen: Sequence[Array],
        num_slots: int,
    ) -> None:
        self._cluster = cluster
        self._shards = shards
        self._servers: list[_Server] = []
        for index, (plan, held) in enumerate(zip(plans, values, strict=True)):
            with cluster.on_server(index):
                self._servers.append(_Server(plan, held.states, num_slots))
        self._frozen = []
        for index, value in enumerate(frozen):
            with cluster.on_server(index % cluster.num_servers):
                self._frozen.append(_variable(value))
        self._has_gradient: list[bool] = []
        self._compiled = cluster.compile(self._update)

    def pull(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Returns weights, states of layers and frozen values, as a worker's tensors."""
        weights: dict[int, Any] = {}
        states: dict[int, Any] = {}
        for shard, server in zip(self._shards, self._servers, strict=True):
            weights.update(zip(shard.variables, map(_read, server.shard.weights), strict=True))
            states.update(zip(shard.states, map(_read, server.states), strict=True))
        return _in_order(weights), _in_order(states), [_read(each) for each in self._frozen]

    def push(self, slot: Any, gradients: Sequence[Any], changes: Sequence[Any]) -> None:
        """Puts what a worker has found into a slot.

        Args:
            slot: int32 scalar.
            gradients: list of tensors by weight, `None` where the loss does not depend on it.
            changes: list of tensors: by how much the batch has changed the states of layers.
        """
        self._has_gradient = [gradient is not None for gradient in gradients]
        for shard, server in zip(self._shards, self._servers, strict=True):
            for place, stage in zip(shard.variables, server.gradients, strict=True):
                if gradients[place] is not None:
                    self._cluster.store(stage, slot, gradients[place])
            for place, stage in zip(shard.states, server.changes, strict=True):
                self._cluster.store(stage, slot, changes[place])

    def update(self, slot: int, rate: float | None) -> None:
        """Makes the update of the batch in a slot, on all servers.

        Args:
            slot: integer.
            rate: float. The learning rate, or `None` where a schedule says it.
        """
        self._cluster.run(self._compiled, [np.int32(slot), rate])

    def write(self, values: Sequence[ShardValues]) -> None:
        """Gives the servers values.

        Args:
            values: list of `ShardValues`.
        """
        for server, held in zip(self._servers, values, strict=True):
            server.write(held)

    def read(self, num_updates: int) -> list[ShardValues]:
        """Returns what the servers hold.

        Args:
            num_updates: integer. The updates that were made.
        """
        return [server.read(num_updates) for server in self._servers]

    def _update(self, slot: Any, rate: Any) -> None:
        has_gradient = self._has_gradient
        for index, (shard, server) in enumerate(zip(self._shards, self._servers, strict=True)):
            with self._cluster.on_server(index):
                if rate is not None:
                    server.shard.optimizer.learning_rate.assign(rate)
                server.shard.update(
                    [
                        self._cluster.load(stage, slot) if has_gradient[place] else None
                        for place, stage in zip(shard.variables, server.gradients, strict=True)
                    ]
                )
                for state, stage in zip(server.states, server.changes, strict=True):
                    state.assign(state.value + self._cluster.load(stage, slot))


class _Server:
    """The variables of one server, made in its context.

    Args:
        plan: `ShardPlan`.
        states: list of NumPy arrays, of layers.
        num_slots: integer.
    """

    def __init__(self, plan: ShardPlan, states: Sequence[Array], num_slots: int) -> None:
        self.shard = ShardVariables(plan)
        self.states = [_variable(value) for value in states]
        self.gradients, self.changes = (
            [_stage(each, num_slots) for each in held] for held in (self.shard.weights, self.states)
        )

    def write(self, values: ShardValues) -> None:
        pairs = (
            (self.shard.weights, values.weights),
            (self.shard.optimizer.variables, values.optimizer),
            (self.states, values.states),
        )
        for variables, arrays in pairs:
            for variable, array in zip(variables, arrays, strict=True):
                variable.assign(array)

    def read(self, num_updates: int) -> ShardValues:
        return ShardValues(
            weights=read_values(self.shard.weights),
            states=read_values(self.states),
            optimizer=read_values(self.shard.optimizer.variables),
            num_updates=num_updates,
            settled_below=num_updates,
        )


def _variable(value: Array) -> keras.Variable:
    return keras.Variable(value, dtype=value.dtype.name, trainable=False)


def _stage(variable: keras.Variable, num_slots: int) -> keras.Variable:
    shape = (num_slots, *variable.shape)
    return keras.Variable("zeros", shape=shape, dtype=variable.dtype, trainable=False)


def _read(variable: keras.Variable) -> Any:
    return ops.convert_to_tensor(variable.value)


def _in_order(found: dict[int, Any]) -> list[Any]:
    return [found[place] for place in range(len(found))]
