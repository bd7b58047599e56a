"""The server of one model shard, as a Ray actor."""

import uuid
from typing import Any

import numpy as np

from keras_deepseek.backend.tensor_values import read_values
from keras_deepseek.training.parameter_server.messages import (
    Pulled,
    Push,
    ShardPlan,
    ShardValues,
    unpack_rows,
)
from keras_deepseek.training.parameter_server.shard_variables import ShardVariables


class ShardServer:
    """A server that holds variables, sends them to workers, and updates them once a batch.

    It starts without values. After a restart by Ray it has none either, and answers `None` until
    the chief has sent them.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Drops all values, so that another training can start."""
        self._life = uuid.uuid4().hex  # The ID of this run: counts of an earlier one don't hold.
        self._shard: Any = None
        self._states: list[Any] = []
        self._num_updates = 0
        self._applied: set[int] = set()
        self._settled_below = 0
        self._most_missed = 0
        self._is_set_up = False

    def life(self) -> str | None:
        """Returns the ID of the server's present run; `None` until it has values."""
        return self._life if self._is_set_up else None

    def set_up(self, plan: ShardPlan, values: ShardValues) -> str:
        """Replaces all values of the server; returns a new ID of its run."""
        if self._shard is None:
            self._make(plan)
        self._write(values)
        self._is_set_up = True
        return self._life

    def pull(self, life: str | None, known_updates: int) -> Pulled | None:
        """Returns the weights, unless the worker has them already.

        `life` is the ID of the server's run that the worker's weights are from, and `known_updates`
        the number of updates in them.
        """
        if not self._is_set_up:
            return None
        version = (self._life, self._num_updates)
        if (life, known_updates) == version:
            return Pulled(version, None, None)
        return Pulled(
            version, read_values(self._shard.weights), [np.array(state) for state in self._states]
        )

    def push(self, push: Push) -> str | None:
        """Applies the update of a batch, unless it was applied already; returns the run's ID."""
        if not self._is_set_up:
            return None
        self._settled_below = max(self._settled_below, push.settled_below)
        self._applied = {number for number in self._applied if number >= self._settled_below}
        if push.number in self._applied or push.number < self._settled_below:
            return self._life
        if push.rate is not None:
            self._shard.optimizer.learning_rate = push.rate
        self._shard.update(
            [None if gradient is None else unpack_rows(gradient) for gradient in push.gradients]
        )
        self._states = [
            (state + change).astype(state.dtype)
            for state, change in zip(self._states, push.changes, strict=True)
        ]
        life, num_updates = push.version
        if life == self._life:
            self._most_missed = max(self._most_missed, self._num_updates - num_updates)
        self._num_updates += 1
        self._applied.add(push.number)
        return self._life

    def read(self) -> ShardValues | None:
        """Returns all values of the server, or `None` if it has none."""
        if not self._is_set_up:
            return None
        return ShardValues(
            weights=read_values(self._shard.weights),
            states=[np.array(state) for state in self._states],
            optimizer=read_values(self._shard.optimizer.variables),
            num_updates=self._num_updates,
            applied=set(self._applied),
            settled_below=self._settled_below,
        )

    def most_missed(self) -> int:
        """Returns the most updates that the weights of any update in this run had missed."""
        return self._most_missed

    def _make(self, plan: ShardPlan) -> None:
        self._shard = ShardVariables(plan)

    def _write(self, values: ShardValues) -> None:
        for variable, value in zip(self._shard.weights, values.weights, strict=True):
            variable.assign(value)
        for variable, value in zip(self._shard.optimizer.variables, values.optimizer, strict=True):
            variable.assign(value)
        self._states = [np.array(state) for state in values.states]
        self._num_updates = values.num_updates
        self._applied = set(values.applied)
        self._settled_below = values.settled_below
