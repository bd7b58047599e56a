"""The model's variables on TensorFlow servers, and the functions that use them there."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.processes.task_cluster import TaskCluster
from keras_deepseek.backend.tensor_values import read_values
from keras_deepseek.training.parameter_server.messages import Shard, ShardPlan, ShardValues
from keras_deepseek.training.parameter_server.shard_variables import ShardVariables


class RemoteModel:
    """The model's variables on servers, where workers read them and write gradients.

    The gradients of a batch wait in one slot of each server until the chief makes the update. If a
    worker ends, its batch is computed again and overwrites the slot. So each update is made once,
    and as a whole. `frozen` are the values of variables that no update changes. `num_slots` batches
    can be computed at once.
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
        for index, (plan, shard_values) in enumerate(zip(plans, values, strict=True)):
            with cluster.on_server(index):
                self._servers.append(_Server(plan, shard_values.states, num_slots))
        self._frozen = []
        for index, value in enumerate(frozen):
            with cluster.on_server(index % cluster.num_servers):
                self._frozen.append(_variable(value))
        self._has_gradient: list[bool] = []
        self._num_updates = 0
        self._compiled = cluster.compile(self._update)

    def pull(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Reads weights, layer states and frozen values from the servers, in a worker's step."""
        weights: dict[int, Any] = {}
        states: dict[int, Any] = {}
        for shard, server in zip(self._shards, self._servers, strict=True):
            weights.update(zip(shard.variables, map(_read, server.shard.weights), strict=True))
            states.update(zip(shard.states, map(_read, server.states), strict=True))
        return _in_order(weights), _in_order(states), [_read(variable) for variable in self._frozen]

    def push(self, slot: Any, gradients: Sequence[Any], changes: Sequence[Any]) -> None:
        """Writes gradients and layer state changes into a slot on the servers, in a worker's step.

        The slot is an int32 scalar. A gradient is `None` if the loss does not depend on the weight.
        `changes` are the differences that the batch made to layer states.
        """
        self._has_gradient = [gradient is not None for gradient in gradients]
        for shard, server in zip(self._shards, self._servers, strict=True):
            for index, stage in zip(shard.variables, server.gradients, strict=True):
                if gradients[index] is not None:
                    self._cluster.store(stage, slot, gradients[index])
            for index, stage in zip(shard.states, server.changes, strict=True):
                self._cluster.store(stage, slot, changes[index])

    def update(self, slot: int, rate: float | None) -> None:
        """Applies the gradients in a slot to the variables of all servers.

        A learning rate of `None` means that the optimizer has a schedule.
        """
        self._cluster.run(self._compiled, [np.int32(slot), rate])
        self._num_updates += 1

    def write(self, server: int, values: ShardValues) -> None:
        """Sets the variables of a server to the given values."""
        self._servers[server].write(values)
        self._num_updates = values.num_updates

    def read(self, server: int) -> ShardValues:
        """Returns the values of a server's variables."""
        return self._servers[server].read(self._num_updates)

    def _update(self, slot: Any, rate: Any) -> None:
        has_gradient = self._has_gradient
        for index, (shard, server) in enumerate(zip(self._shards, self._servers, strict=True)):
            with self._cluster.on_server(index):
                if rate is not None:
                    server.shard.optimizer.learning_rate.assign(rate)
                server.shard.update(
                    [
                        self._cluster.load(stage, slot) if has_gradient[variable_index] else None
                        for variable_index, stage in zip(
                            shard.variables, server.gradients, strict=True
                        )
                    ]
                )
                for state, stage in zip(server.states, server.changes, strict=True):
                    state.assign(state.value + self._cluster.load(stage, slot))


class _Server:
    """The variables of one server, created inside of `TaskCluster.on_server`."""

    def __init__(self, plan: ShardPlan, states: Sequence[Array], num_slots: int) -> None:
        self.shard = ShardVariables(plan)
        self.states = [_variable(value) for value in states]
        self.gradients, self.changes = (
            [_stage(variable, num_slots) for variable in variables]
            for variables in (self.shard.weights, self.states)
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
    """Creates the slots for the gradients or changes of a variable, along the first axis."""
    shape = (num_slots, *variable.shape)
    return keras.Variable("zeros", shape=shape, dtype=variable.dtype, trainable=False)


def _read(variable: keras.Variable) -> Any:
    return ops.convert_to_tensor(variable.value)


def _in_order(value_by_index: dict[int, Any]) -> list[Any]:
    return [value_by_index[index] for index in range(len(value_by_index))]
