"""Which server holds which variable."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from keras_deepseek.errors import InvalidInputError


@dataclass(frozen=True)
class Shard:
    """What one server holds of a model.

    Args:
        variables: list of integers. Places among the model's trainable variables, in their order.
        states: list of integers. Places among what batches leave in its layers.
    """

    variables: list[int]
    states: list[int]


def split_by_size(
    paths: Sequence[str], variable_sizes: Sequence[int], state_sizes: Sequence[int], num_shards: int
) -> list[Shard]:
    """Returns shards of about the same size: the largest piece first, each to the emptiest shard.

    Variables are not cut. Those of one path go together, so that an optimizer that has a part of
    them tells their slots apart as one that has all.

    Args:
        paths: The paths of the trainable variables.
        variable_sizes: Their sizes.
        state_sizes: The sizes of what batches leave in layers.
        num_shards: integer. How many shards.

    Raises:
        InvalidInputError: There are more shards than variables.
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
        place = min(among, key=lambda shard: (loads[shard], shard))
        loads[place] += size
        return shards[place]

    def total(members: Sequence[int]) -> int:
        return sum(variable_sizes[index] for index in members)

    largest_first = sorted(groups.values(), key=lambda members: (-total(members), members))
    for members in largest_first:
        # An empty shard first, whatever its size: each server has an update to count by.
        empty = [index for index, shard in enumerate(shards) if not shard.variables]
        put(total(members), empty or range(num_shards)).variables.extend(members)
    for index in sorted(range(len(state_sizes)), key=lambda each: (-state_sizes[each], each)):
        put(state_sizes[index], range(num_shards)).states.append(index)
    return [Shard(sorted(shard.variables), sorted(shard.states)) for shard in shards]
