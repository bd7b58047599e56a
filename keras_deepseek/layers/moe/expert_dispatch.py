"""Tokens put in order by expert, so that few large products do the work: the way into the experts.

Every shape is known from the number of tokens alone, as XLA asks, and no token is dropped. A
counting sort gives each choice of an expert a row, its *slot*. The slots come in blocks of equal
size, each of one expert: an expert has as many blocks as its load needs, and there are enough for
any load. The layer then multiplies block by block with the kernels of the blocks' experts.

With a fixed capacity instead, every expert has one block, and what does not fit into it is dropped.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from keras import ops

_READ_KERNEL = 16
_COPY_KERNEL = 32
"""What it costs to read and to copy a kernel, in products of it with one row.

Estimates from a CPU's usual memory bandwidth and speed of products, not measurements.
"""

_BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_DEFAULT_BLOCK_SIZE = 64
"""The size where the number of tokens is not known when the layer is traced."""


@dataclass(frozen=True)
class ExpertDispatch:
    """Where the rows go, and where they come back from.

    Args:
        block_size: Rows of a block.
        token_of_slot: int32 tensor of shape `(num_blocks * block_size,)`. The token that stands in
            each slot; 0 in an empty one, whose result nothing reads.
        expert_of_block: int32 tensor of shape `(num_blocks,)`, or `None` where block `i` is
            expert `i`'s.
        slot_of_choice: int32 tensor of shape `(num_tokens, num_experts_per_token)`.
        is_computed: Boolean tensor of that shape. `False` where a choice has no slot.
    """

    block_size: Any
    token_of_slot: Any
    expert_of_block: Any
    slot_of_choice: Any
    is_computed: Any


def dispatch_to_blocks(indices: Any, num_experts: int, block_size: int) -> ExpertDispatch:
    """Gives each expert as many blocks as it needs.

    Args:
        indices: int32 tensor of shape `(num_tokens, num_experts_per_token)`. An index of
            `num_experts` chooses nobody.
        num_experts: The number of experts.
        block_size: Rows of a block.
    """
    rank, counts = _count(indices, num_experts)
    num_choices = ops.shape(rank)[0]
    blocks = (counts + (block_size - 1)) // block_size
    ends = ops.cumsum(blocks)
    num_blocks = count_blocks(num_choices, num_experts, block_size)
    expert = ops.cast(ops.searchsorted(ends, _arange(num_blocks), side="right"), "int32")
    # Blocks that no expert needs stand at the end, and go to the last one.
    expert = ops.minimum(expert, num_experts - 1)
    flat = ops.reshape(indices, (-1,))
    first = ops.take((ends - blocks) * block_size, ops.minimum(flat, num_experts - 1))
    return _assign(
        indices, first + rank, flat < num_experts, num_blocks * block_size, block_size, expert
    )


def dispatch_to_capacity(indices: Any, num_experts: int, capacity: Any) -> ExpertDispatch:
    """Gives each expert one block of `capacity` rows; later choices beyond it are not computed.

    Args:
        indices: As for `dispatch_to_blocks`.
        num_experts: The number of experts.
        capacity: Rows of each expert.
    """
    rank, _ = _count(indices, num_experts)
    flat = ops.reshape(indices, (-1,))
    fits = ops.logical_and(rank < capacity, flat < num_experts)
    return _assign(indices, flat * capacity + rank, fits, num_experts * capacity, capacity, None)


def choose_block_size(num_tokens: Any, num_choices: Any, num_experts: int) -> int | None:
    """Returns the block size of least cost, or `None` where all experts on all tokens cost less.

    A larger block has more empty rows, a smaller one more copies of kernels.

    Args:
        num_tokens: The number of tokens: an integer, or a tensor where it is not known.
        num_choices: How often an expert is chosen: tokens times experts per token.
        num_experts: The number of experts.
    """
    if not isinstance(num_tokens, int):
        return _DEFAULT_BLOCK_SIZE
    if num_tokens == 0:
        return None  # JAX takes nothing from nothing.

    def cost(block_size: int) -> int:
        num_blocks = count_blocks(num_choices, num_experts, block_size)
        return int(num_blocks * (block_size + _READ_KERNEL + _COPY_KERNEL))

    best = min(_BLOCK_SIZES, key=cost)
    return None if num_experts * (num_tokens + _READ_KERNEL) <= cost(best) else best


def count_blocks(num_choices: Any, num_experts: int, block_size: int) -> Any:
    """Returns how many blocks hold any load: each expert in use may leave one almost empty."""
    in_use = min(num_choices, num_experts) if isinstance(num_choices, int) else num_experts
    return (num_choices + in_use * (block_size - 1)) // block_size


def count_capacity(
    num_tokens: Any, num_experts: int, num_experts_per_token: int, factor: float
) -> Any:
    """Returns the rows of an expert: `factor` times its even share of the choices, rounded up."""
    share = Fraction(factor).limit_denominator(1000) * num_experts_per_token / num_experts
    # In integers, since the number of tokens may be a tensor.
    return (num_tokens * share.numerator + (share.denominator - 1)) // share.denominator


def _count(indices: Any, num_experts: int) -> tuple[Any, Any]:
    """Returns each choice's rank among those of its expert, and the number of each expert's."""
    # By sorting, since a table of choices by experts would be large where there are many of both.
    flat = ops.reshape(indices, (-1,))
    order = ops.argsort(flat)
    ordered = ops.take(flat, order)
    first = ops.cast(ops.searchsorted(ordered, _arange(num_experts + 1)), "int32")
    rank = _arange(ops.shape(flat)[0]) - ops.take(first, ordered)
    rank = ops.scatter_update(ops.zeros_like(rank), ops.expand_dims(order, 1), rank)
    return rank, first[1:] - first[:-1]


def _assign(
    indices: Any, slots: Any, is_computed: Any, num_slots: Any, block_size: Any, expert: Any
) -> ExpertDispatch:
    num_tokens, per_token = ops.shape(indices)
    tokens = ops.repeat(_arange(num_tokens), per_token)
    # The choices without a slot meet in one more, which is cut off again.
    target = ops.where(is_computed, slots, num_slots)
    tokens = ops.where(is_computed, tokens, 0)
    # `ops.scatter` goes through its indices one by one on torch.
    empty = ops.zeros((num_slots + 1,), "int32")
    filled = ops.scatter_update(empty, ops.expand_dims(target, 1), tokens)
    return ExpertDispatch(
        block_size=block_size,
        token_of_slot=filled[:-1],
        expert_of_block=expert,
        slot_of_choice=ops.reshape(ops.where(is_computed, slots, 0), ops.shape(indices)),
        is_computed=ops.reshape(is_computed, ops.shape(indices)),
    )


def _arange(stop: Any) -> Any:
    return ops.arange(stop, dtype="int32")
