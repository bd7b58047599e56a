"""The division of the chief's model among the servers."""

from collections.abc import Hashable, Sequence

import keras

from keras_deepseek.backend.keras_private.layers import batch_states
from keras_deepseek.backend.keras_private.optimizers import optimizer_recipe, uses_decay
from keras_deepseek.backend.tensor_values import count_bytes, read_values
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.parameter_server.messages import (
    Shard,
    ShardPlan,
    ShardValues,
    VariablePlan,
)
from keras_deepseek.training.parameter_server.shard_variables import find_slot_indices


class ModelShards:
    """The parts of a model that servers hold: weights, layer states and optimizer variables.

    There may not be more servers than variables.
    """

    def __init__(self, model: keras.Model, num_servers: int) -> None:
        self._all = model.variables
        self._optimizer = model.optimizer
        self._variables = model.trainable_variables
        self._states = kept_states(model)
        self.shards = split_by_size(
            [variable.path for variable in self._variables],
            [count_bytes([variable]) for variable in self._variables],
            [count_bytes([state]) for state in self._states],
            num_servers,
        )
        self._class, config = optimizer_recipe(self._optimizer)
        # A worker does not scale its loss, and clips by the global norm before it sends the parts.
        self._config = {**config, "loss_scale_factor": None, "global_clipnorm": None}
        self._slot_indices = find_slot_indices(
            self._class, self._config, self._variables, [shard.variables for shard in self.shards]
        )

    def describe(self) -> list[tuple[tuple[int, ...], str, bool]]:
        """Returns the shape, dtype and `trainable` of each variable of the model."""
        return [
            (tuple(variable.shape), variable.dtype, variable.trainable) for variable in self._all
        ]

    def plans(self) -> list[ShardPlan]:
        """Returns each server's description of its variables."""
        rows = [
            VariablePlan(
                variable.path,
                tuple(variable.shape),
                variable.dtype,
                variable.constraint,
                uses_decay(self._optimizer, variable),
            )
            for variable in self._variables
        ]
        return [
            ShardPlan([rows[index] for index in shard.variables], self._class, self._config)
            for shard in self.shards
        ]

    def read(self, number: int) -> list[ShardValues]:
        """Reads each server's values from the chief's model.

        `number` is the first batch whose update is not in them.
        """
        weights, states = read_values(self._variables), read_values(self._states)
        optimizer = read_values(self._optimizer.variables)
        return [
            ShardValues(
                weights=[weights[index] for index in shard.variables],
                states=[states[index] for index in shard.states],
                optimizer=[optimizer[index] for index in slots],
                num_updates=number,
                settled_below=number,
            )
            for shard, slots in zip(self.shards, self._slot_indices, strict=True)
        ]

    def write(self, values: Sequence[ShardValues]) -> None:
        """Sets the chief's model to the servers' values, except for the learning rate."""
        optimizer, rate = self._optimizer.variables, self._optimizer.learning_rate
        for shard, slots, shard_values in zip(self.shards, self._slot_indices, values, strict=True):
            for index, value in zip(shard.variables, shard_values.weights, strict=True):
                self._variables[index].assign(value)
            for index, value in zip(shard.states, shard_values.states, strict=True):
                self._states[index].assign(value)
            for index, value in zip(slots, shard_values.optimizer, strict=True):
                if optimizer[index] is not rate:  # The chief sets it.
                    optimizer[index].assign(value)


def split_by_size(
    paths: Sequence[str], variable_sizes: Sequence[int], state_sizes: Sequence[int], num_shards: int
) -> list[Shard]:
    """Divides variables into shards of about the same size.

    The largest goes first, each into the smallest shard. A variable is not cut. Variables of the
    same path go together: the optimizer of a part then tells their slots apart as that of all
    would. Sizes are in bytes.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, path in enumerate(paths):
        groups.setdefault(path, []).append(index)
    if num_shards > len(groups):
        raise InvalidInputError(
            f"Received num_servers={num_shards}, and the model has {len(groups)} trainable "
            "variables to spread over them. Use fewer servers."
        )
    loads = [0] * num_shards
    shards = [Shard([], []) for _ in range(num_shards)]

    def put(size: int, among: Sequence[int]) -> Shard:
        chosen = min(among, key=lambda shard: (loads[shard], shard))
        loads[chosen] += size
        return shards[chosen]

    def total(members: Sequence[int]) -> int:
        return sum(variable_sizes[index] for index in members)

    largest_first = sorted(groups.values(), key=lambda members: (-total(members), members))
    for members in largest_first:
        # An empty shard first, whatever its size: each server counts updates, and needs a variable.
        empty = [index for index, shard in enumerate(shards) if not shard.variables]
        put(total(members), empty or range(num_shards)).variables.extend(members)
    for index in sorted(range(len(state_sizes)), key=lambda state: (-state_sizes[state], state)):
        put(state_sizes[index], range(num_shards)).states.append(index)
    return [Shard(sorted(shard.variables), sorted(shard.states)) for shard in shards]


def kept_states(model: keras.Model) -> list[keras.Variable]:
    """Returns the layer variables that a batch changes, such as moving averages, each once."""
    numbers = [state for state in batch_states(model) if state.dtype not in ("bool", "string")]
    return list({id(state): state for state in numbers}.values())


def same_values(values: Sequence[ShardValues], other: Sequence[ShardValues]) -> bool:
    """Returns True if two lists of `ShardValues` hold the same bytes."""
    pairs = zip(values, other, strict=True)
    return all(_same(first, second) for first, second in pairs)


def _same(first: ShardValues, second: ShardValues) -> bool:
    arrays = zip(
        [*first.weights, *first.states, *first.optimizer],
        [*second.weights, *second.states, *second.optimizer],
        strict=True,
    )
    return all(array.tobytes() == other.tobytes() for array, other in arrays)
