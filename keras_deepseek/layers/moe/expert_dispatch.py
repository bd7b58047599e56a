"""Tokens put in order by expert, so that few large products do the work: the way into the experts.

The choices of experts are sorted, and each has a row, its *slot*, beside others of its expert. No
token is dropped. Where the loads of the experts can be read, as in eager PyTorch and TensorFlow,
the slots are just the choices, and each expert computes its own.

Elsewhere every shape has to be known from the number of tokens alone, as XLA asks. The slots then
come in blocks of equal size, each of one expert: an expert has as many blocks as its load needs,
and there are enough for any load. The layer multiplies block by block with the kernels of the
blocks' experts.

With a fixed capacity instead, every expert has one block, and what does not fit into it is dropped.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from keras import ops

from keras_deepseek import backend

_READ_KERNEL = 16
_COPY_KERNEL = 48
"""What it costs to read and to copy a kernel, in products of it with one row.

Numbers whose choices were the cheapest on a CPU, or near them, in graphs of TensorFlow and JAX, for
8 and 64 experts and 1 to 4,096 tokens.
"""

_READ_KERNEL_IN_LOOP = 20
"""What it costs to read a kernel in a loop over blocks, in the same unit.

The sizes that it chooses were the fastest, or near it, for 8 to 4,096 choices of 16 experts.
"""

_LEAST_WORK = 2**20
"""With fewer multiplications than these, calling the experts one by one costs more than they do."""

_LEAST_LOOP = 8
"""So few choices of tokens are computed at once in less time than one by one, or near it."""

_BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_DEFAULT_BLOCK_SIZE = 64
"""The size where the number of tokens is not known when the layer is traced."""


@dataclass(frozen=True)
class ExpertDispatch:
    """Where the rows go, and where they come back from.

    Args:
        token_of_slot: int32 tensor of shape `(num_slots,)`. The token that stands in each slot; 0
            in an empty one, whose result nothing reads.
        slot_of_choice: int32 tensor of shape `(num_tokens, num_experts_per_token)`.
        is_computed: Boolean tensor of that shape. `False` where a choice has no slot.
        block_size: Rows of a block, or `None` where there are no blocks.
        expert_of_block: int32 tensor of shape `(num_blocks,)`, or `None` where block `i` is
            expert `i`'s.
        num_used: int32 scalar tensor, or `None` where `expert_of_block` is. How many blocks, from
            the first on, have rows.
        loads: List of integers, or `None` where there are blocks. The slots of each expert.
    """

    token_of_slot: Any
    slot_of_choice: Any
    is_computed: Any
    block_size: Any = None
    expert_of_block: Any = None
    num_used: Any = None
    loads: list[int] | None = None


@dataclass(frozen=True)
class _Sorted:
    """The choices in order of their experts; those of nobody are the last.

    Args:
        choices: int32 tensor of shape `(num_choices,)`.
        rank: int32 tensor of that shape, and not in that order: each choice's place among those of
            its expert.
        expert: As `rank`. Each choice's expert; that of a choice of nobody is the last.
        is_some: Boolean tensor. As `rank`. Whether it chooses anybody.
        loads: int32 tensor of shape `(num_experts,)`. How many choices each expert has.
        starts: int32 tensor of that shape. The place of its first one in `choices`.
    """

    choices: Any
    rank: Any
    expert: Any
    is_some: Any
    loads: Any
    starts: Any


def dispatch_by_load(indices: Any, num_experts: int, expert_size: int) -> ExpertDispatch | None:
    """Gives each expert as many slots as it has choices.

    Args:
        indices: int32 tensor of shape `(num_tokens, num_experts_per_token)`. An index of
            `num_experts` chooses nobody.
        num_experts: The number of experts.
        expert_size: How many numbers the kernels of an expert hold.

    Returns:
        An `ExpertDispatch`, or `None` where the loads can't be read, or are not worth it.
    """
    if not backend.current().compute.can_read_shapes(indices):
        return None
    if indices.shape[0] * indices.shape[1] * expert_size < _LEAST_WORK:
        return None
    # Of the smallest type, whose numbers NumPy puts in order by their digits.
    experts = ops.convert_to_numpy(indices).ravel().astype(np.min_scalar_type(num_experts))
    loads = np.bincount(experts, minlength=num_experts + 1)[:num_experts].tolist()
    if not sum(loads):
        return None  # All tokens are hidden, and nothing would be put together.
    choices = np.argsort(experts, kind="stable").astype("int32")
    slots = np.empty_like(choices)
    slots[choices] = np.arange(len(choices))
    tokens = choices[: sum(loads)] // indices.shape[1]
    return _return(indices, tokens, slots, experts < num_experts, loads=loads)


def dispatch_to_blocks(indices: Any, num_experts: int, block_size: Any) -> ExpertDispatch:
    """Gives each expert as many blocks as it needs.

    Args:
        indices: int32 tensor of shape `(num_tokens, num_experts_per_token)`. An index of
            `num_experts` chooses nobody.
        num_experts: The number of experts.
        block_size: Rows of a block, an integer or a tensor.
    """
    if isinstance(block_size, int) and block_size == 1:
        return _dispatch_as_they_are(indices, num_experts)
    order = _sort(indices, num_experts)
    blocks = (order.loads + (block_size - 1)) // block_size
    ends = ops.cumsum(blocks)
    block = _arange(count_blocks(ops.shape(order.choices)[0], num_experts, block_size))
    expert = ops.cast(ops.searchsorted(ends, block, side="right"), "int32")
    # Blocks that no expert needs stand at the end, and go to the last one.
    expert = ops.minimum(expert, num_experts - 1)
    first_rank = (block - ops.take(ends - blocks, expert)) * block_size
    return _return(
        indices,
        _fill(indices, order, expert, first_rank, block_size),
        ops.take((ends - blocks) * block_size, order.expert) + order.rank,
        order.is_some,
        block_size=block_size,
        expert_of_block=expert,
        num_used=ops.cast(ends[-1], "int32"),
    )


def _dispatch_as_they_are(indices: Any, num_experts: int) -> ExpertDispatch:
    """Each choice is a block, so that there is nothing to sort."""
    flat = ops.reshape(indices, (-1,))
    slots = _arange(ops.shape(flat)[0])
    return _return(
        indices,
        slots // indices.shape[1],
        slots,
        flat < num_experts,
        block_size=1,
        expert_of_block=ops.minimum(flat, num_experts - 1),
        num_used=ops.cast(ops.shape(flat)[0], "int32"),
    )


def dispatch_to_capacity(indices: Any, num_experts: int, capacity: Any) -> ExpertDispatch:
    """Gives each expert one block of `capacity` rows; later choices beyond it are not computed.

    Args:
        indices: As for `dispatch_to_blocks`.
        num_experts: The number of experts.
        capacity: Rows of each expert.
    """
    order = _sort(indices, num_experts)
    fits = ops.logical_and(order.rank < capacity, order.is_some)
    expert = _arange(num_experts)
    tokens = _fill(indices, order, expert, ops.zeros_like(expert), capacity)
    slots = order.expert * capacity + order.rank
    return _return(indices, tokens, slots, fits, block_size=capacity)


def is_worth_a_loop(num_choices: Any, expert_size: int) -> bool:
    """Whether blocks that are computed one after the other take less time than all at once.

    Args:
        num_choices: How often an expert is chosen, an integer, or a tensor where it is not known.
        expert_size: How many numbers the kernels of an expert hold.
    """
    if not isinstance(num_choices, int):
        return True  # At once they would be in blocks of a size for many.
    return num_choices >= _LEAST_LOOP and num_choices * expert_size >= _LEAST_WORK


def choose_looped_block_size(num_choices: Any, num_experts: int) -> Any:
    """Returns the block size of least cost in a loop, which computes the blocks in use alone.

    Args:
        num_choices: How often an expert is chosen, an integer, or a tensor where it is not known;
            so is the size then.
        num_experts: The number of experts.
    """
    is_known = isinstance(num_choices, int)
    of: Any = np if is_known else ops
    num_choices = num_choices if is_known else ops.cast(num_choices, "float32")
    in_use = num_experts * (1 - (1 - 1 / num_experts) ** num_choices)
    sizes = of.array(_BLOCK_SIZES, "float32")
    # Of each expert in use the last block is half empty.
    num_blocks = of.maximum(num_choices / sizes + in_use * (1 - 1 / sizes) / 2, in_use)
    best = of.argmin(num_blocks * (sizes + _READ_KERNEL_IN_LOOP))
    return _BLOCK_SIZES[best] if is_known else ops.cast(ops.take(sizes, best), "int32")


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


def count_blocks(num_choices: Any, num_experts: int, block_size: Any) -> Any:
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


def _sort(indices: Any, num_experts: int) -> _Sorted:
    flat = ops.reshape(indices, (-1,))
    choices = ops.argsort(flat)
    # Not by a table of choices and experts, which is large where there are many of both.
    loads = ops.segment_sum(ops.ones_like(flat), flat, num_segments=num_experts + 1)[:-1]
    starts = ops.cast(ops.cumsum(loads), "int32") - loads
    expert = ops.minimum(flat, num_experts - 1)
    # The order of an order is its inverse: where in it each choice stands.
    rank = ops.argsort(choices) - ops.take(starts, expert)
    return _Sorted(choices, rank, expert, flat < num_experts, loads, starts)


def _fill(indices: Any, order: _Sorted, expert: Any, first_rank: Any, block_size: Any) -> Any:
    """Returns the tokens in the slots of blocks, from their experts and their first choices."""
    rank = ops.expand_dims(first_rank, 1) + ops.expand_dims(_arange(block_size), 0)
    is_filled = rank < ops.expand_dims(ops.take(order.loads, expert), 1)
    place = ops.expand_dims(ops.take(order.starts, expert), 1) + rank
    place = ops.reshape(ops.where(is_filled, place, 0), (-1,))
    tokens = ops.take(order.choices, place) // indices.shape[1]
    return ops.where(ops.reshape(is_filled, (-1,)), tokens, 0)


def _return(
    indices: Any, tokens: Any, slots: Any, is_computed: Any, **kwargs: Any
) -> ExpertDispatch:
    shape = ops.shape(indices)
    return ExpertDispatch(
        token_of_slot=tokens,
        slot_of_choice=ops.reshape(ops.where(is_computed, slots, 0), shape),
        is_computed=ops.reshape(is_computed, shape),
        **kwargs,
    )


def _arange(stop: Any) -> Any:
    return ops.arange(stop, dtype="int32")
