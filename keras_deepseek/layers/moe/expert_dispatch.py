"""Dispatch of tokens to experts: sorts (token, expert) choices by expert for large products.

Each choice of an expert gets a row, its *slot*, next to other choices of the same expert. No token
is dropped. If shapes may depend on the loads of the experts, as in eager PyTorch and in TensorFlow
without XLA, the slots are exactly the choices, and each expert computes its own slots. A few
choices, as when text is generated, are not sorted: each is computed by itself.

Under XLA all shapes must follow from the number of tokens, as XLA requires. The slots then
come in blocks of equal size, each of one expert. An expert has as many blocks as its load needs,
and there are enough blocks for any load. The layer multiplies each block with the kernels of its
expert.

With a fixed capacity instead, every expert has one block, and choices beyond it are dropped.

Shape suffixes: T tokens, K experts a token, N choices (T * K), E experts, S slots, B blocks, R rows
of a block.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.call_context import (
    is_batch_invariant,
    is_gradient_free,
    known_size,
)

_READ_KERNEL = 16
_COPY_KERNEL = 48
"""The costs to read and to copy a kernel. The unit is the product of the kernel with one row.

Measured on a CPU, in graphs of TensorFlow and JAX, for 8 and 64 experts and 1 to 4,096 tokens: with
these costs the chosen block sizes were the cheapest or close to it.
"""

_READ_KERNEL_IN_LOOP = 20
"""The cost to read a kernel in a loop over blocks, in the same unit.

The sizes chosen with it were the fastest, or close to it, for 8 to 4,096 choices of 16 experts.
"""

_LEAST_READ = 2**17
"""The least number of multiplications for which it pays off to read which experts were chosen."""

_MOST_IN_GRAPH = 64
"""The most experts that a graph holds one by one: more take long to trace."""

_LEAST_LOAD = 8
"""The least mean load for which gradients in such a graph are faster than those of blocks."""

_LEAST_WORK = 2**20
"""The least number of multiplications for which a loop over blocks pays off."""

_LEAST_LOOP = 8
"""The least number of choices for which a loop is faster than computing all of them at once."""

_BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_DEFAULT_BLOCK_SIZE = 64
"""The block size if the number of tokens is unknown while the layer is traced."""


@dataclass(frozen=True)
class ExpertDispatch:
    """Tables that assign choices of experts to slots, and slots to tokens and experts.

    Args:
        token_of_slot: int32 tensor (S). The token in each slot; 0 in an empty slot, whose result is
            never read.
        slot_of_choice: int32 tensor (TK). The slot of each choice; 0 if it has none.
        is_computed: Boolean tensor (TK). False if a choice has no slot. `None` if all have one.
        block_size: R, or `None` if there are no blocks.
        expert_of_block: int32 tensor (B), or `None` if block `i` belongs to expert `i`.
        num_used: int32 scalar tensor: the number of first blocks that have rows. `None` if
            `expert_of_block` is.
        ends_of_loads: int32 array or tensor (E). The end of each expert's slots; slots after the
            last are of choices without an expert. `None` if there are blocks.
    """

    token_of_slot: Any
    slot_of_choice: Any
    is_computed: Any
    block_size: Any = None
    expert_of_block: Any = None
    num_used: Any = None
    ends_of_loads: Any = None


@dataclass(frozen=True)
class _Sorted:
    """The (token, expert) choices sorted by expert; choices without an expert come last.

    Args:
        choices: int32 tensor (N). The numbers of the choices, in sorted order.
        rank: int32 tensor (N), in the original order. A choice's place among those of its expert.
        expert: int32 tensor (N), in the original order. The expert of each choice; a choice of no
            expert has the last one.
        has_expert: Boolean tensor (N), in the original order.
        loads: int32 tensor (E). The number of choices of each expert.
        starts: int32 tensor (E). The place of each expert's first choice in `choices`.
    """

    choices: Any
    rank: Any
    expert: Any
    has_expert: Any
    loads: Any
    starts: Any


def is_worth_reading(num_choices: Any, expert_size: int) -> bool:
    """Returns True if experts that read their kernels in place are faster than copies of these.

    `num_choices` is a tensor if unknown. `expert_size` is the number of weights of an expert.
    """
    number = known_size(num_choices)
    return number is not None and number * expert_size >= _LEAST_READ


def list_experts(
    indices_TK: Any, num_experts: int, expert_size: int
) -> tuple[list[Any], Any] | None:
    """Lists the expert of each choice, if these are so few that each is computed by itself.

    Returns the experts, integers or scalar tensors; and which choices have one (TK), or `None` if
    all have. An index of `num_experts` chooses no expert, and is listed as the last one.
    """
    num_tokens, per_token = ops.shape(indices_TK)
    num_choices = num_tokens * per_token
    compute = backend.current().compute
    if not is_worth_reading(num_choices, expert_size) or 2 * num_choices > num_experts:
        return None
    if not compute.reads_in_place(indices_TK):
        return None
    last = num_experts - 1
    indices = compute.read_array(indices_TK)
    if indices is None:
        experts = ops.unstack(ops.reshape(ops.minimum(indices_TK, last), (-1,)))
        return experts, indices_TK <= last
    is_computed_TK = None if indices.max() <= last else indices_TK <= last
    return np.minimum(indices, last).ravel().tolist(), is_computed_TK


def dispatch_by_load(indices_TK: Any, num_experts: int, expert_size: int) -> ExpertDispatch | None:
    """Assigns each expert as many slots as it has tokens.

    It returns `None` if shapes may not depend on the loads, if there is too little work to gain
    from it, or if a token's result must not depend on the others. An index of `num_experts` chooses
    no expert. `expert_size` is the number of weights of an expert.
    """
    compute = backend.current().compute
    if is_batch_invariant() or not compute.has_free_shapes(indices_TK):
        return None
    num_tokens, per_token = ops.shape(indices_TK)
    if not is_worth_reading(num_tokens * per_token, expert_size):
        return None
    if not compute.is_traced(indices_TK):
        # NumPy sorts the smallest integer type by radix sort, which is faster.
        experts_N = ops.convert_to_numpy(indices_TK).ravel().astype(np.min_scalar_type(num_experts))
        choices_N = np.argsort(experts_N, kind="stable").astype("int32")
        slots_N = np.empty_like(choices_N)
        slots_N[choices_N] = np.arange(len(choices_N), dtype="int32")
        ends_E = np.cumsum(np.bincount(experts_N, minlength=num_experts)[:num_experts])
    elif num_experts > _MOST_IN_GRAPH or not (
        is_gradient_free() or num_tokens * per_token >= _LEAST_LOAD * num_experts
    ):
        return None
    else:
        experts_N = ops.reshape(indices_TK, (-1,))
        choices_N = ops.argsort(experts_N)
        slots_N = ops.argsort(choices_N)  # The inverse of a permutation.
        ones_N = ops.ones_like(experts_N)
        ends_E = ops.cumsum(ops.segment_sum(ones_N, experts_N, num_segments=num_experts + 1)[:-1])
    return ExpertDispatch(
        token_of_slot=choices_N // per_token,
        slot_of_choice=ops.reshape(slots_N, (num_tokens, per_token)),
        is_computed=None,
        ends_of_loads=ends_E,
    )


def dispatch_to_blocks(indices_TK: Any, num_experts: int, block_size: Any) -> ExpertDispatch:
    """Assigns each expert as many blocks of `block_size` slots as its tokens need.

    An index of `num_experts` chooses no expert.
    """
    if isinstance(block_size, int) and block_size == 1:
        return _dispatch_single_rows(indices_TK, num_experts)
    order = _sort(indices_TK, num_experts)
    num_blocks_E = (order.loads + (block_size - 1)) // block_size
    ends_E = ops.cumsum(num_blocks_E)
    starts_E = ends_E - num_blocks_E
    block_B = _arange(count_blocks(ops.shape(order.choices)[0], num_experts, block_size))
    expert_B = ops.cast(ops.searchsorted(ends_E, block_B, side="right"), "int32")
    # Blocks that no expert needs stand at the end, and go to the last expert.
    expert_B = ops.minimum(expert_B, num_experts - 1)
    first_rank_B = ops.subtract(block_B, ops.take(starts_E, expert_B)) * block_size
    return _make_dispatch(
        indices_TK,
        _fill(indices_TK, order, expert_B, first_rank_B, block_size),
        ops.take(starts_E * block_size, order.expert) + order.rank,
        order.has_expert,
        block_size=block_size,
        expert_of_block=expert_B,
        num_used=ops.cast(ends_E[-1], "int32"),
    )


def _dispatch_single_rows(indices_TK: Any, num_experts: int) -> ExpertDispatch:
    """Assigns each choice of an expert its own block of one row, without sorting."""
    experts_N = ops.reshape(indices_TK, (-1,))
    slots_N = _arange(ops.shape(experts_N)[0])
    return _make_dispatch(
        indices_TK,
        slots_N // indices_TK.shape[1],
        slots_N,
        experts_N < num_experts,
        block_size=1,
        expert_of_block=ops.minimum(experts_N, num_experts - 1),
        num_used=ops.cast(ops.shape(experts_N)[0], "int32"),
    )


def dispatch_to_capacity(indices_TK: Any, num_experts: int, capacity: Any) -> ExpertDispatch:
    """Assigns each expert `capacity` slots, and drops its tokens beyond them.

    An index of `num_experts` chooses no expert.
    """
    order = _sort(indices_TK, num_experts)
    fits_N = ops.logical_and(order.rank < capacity, order.has_expert)
    expert_B = _arange(num_experts)
    tokens_S = _fill(indices_TK, order, expert_B, ops.zeros_like(expert_B), capacity)
    slots_N = order.expert * capacity + order.rank
    return _make_dispatch(indices_TK, tokens_S, slots_N, fits_N, block_size=capacity)


def is_worth_a_loop(num_choices: Any, expert_size: int) -> bool:
    """Returns True if a loop over blocks is faster than computing all blocks at once.

    `num_choices` is a tensor if unknown. `expert_size` is the number of weights of an expert.
    """
    number = known_size(num_choices)
    if number is None:
        return True  # Computed at once, blocks would have a size for many choices.
    return number >= _LEAST_LOOP and number * expert_size >= _LEAST_WORK


def choose_looped_block_size(num_choices: Any, num_experts: int) -> Any:
    """Returns the cheapest block size for a loop that skips empty blocks.

    `num_choices` is the number of (token, expert) choices. If it is a tensor, so is the result.
    """
    is_known = known_size(num_choices) is not None
    of: Any = np if is_known else ops
    num_choices = num_choices if is_known else ops.cast(num_choices, "float32")
    in_use = num_experts * (1 - (1 - 1 / num_experts) ** num_choices)
    sizes = of.array(_BLOCK_SIZES, "float32")
    # The last block of each expert in use is half empty on average.
    num_blocks = of.maximum(num_choices / sizes + in_use * (1 - 1 / sizes) / 2, in_use)
    best = of.argmin(num_blocks * (sizes + _READ_KERNEL_IN_LOOP))
    return _BLOCK_SIZES[best] if is_known else ops.cast(ops.take(sizes, best), "int32")


def choose_block_size(num_tokens: Any, num_choices: Any, num_experts: int) -> int | None:
    """Returns the cheapest block size; `None` if every expert on every token is cheaper.

    A larger block has more empty rows, a smaller one needs more copies of kernels. The numbers of
    tokens and of choices are tensors if unknown.
    """
    if known_size(num_tokens) is None:
        return _DEFAULT_BLOCK_SIZE
    if num_tokens == 0:
        return None  # JAX's `take` fails on an empty tensor.

    def cost(block_size: int) -> int:
        num_blocks = count_blocks(num_choices, num_experts, block_size)
        return int(num_blocks * (block_size + _READ_KERNEL + _COPY_KERNEL))

    best = min(_BLOCK_SIZES, key=cost)
    return None if num_experts * (num_tokens + _READ_KERNEL) <= cost(best) else best


def count_blocks(num_choices: Any, num_experts: int, block_size: Any) -> Any:
    """Returns the largest number of blocks that `num_choices` choices of experts can need.

    Each expert in use may leave one block almost empty.
    """
    is_known = known_size(num_choices) is not None
    in_use = min(num_choices, num_experts) if is_known else num_experts
    return (num_choices + in_use * (block_size - 1)) // block_size


def count_capacity(
    num_tokens: Any, num_experts: int, num_experts_per_token: int, factor: float
) -> Any:
    """Returns the slots per expert: `factor` times the mean number of tokens, rounded up."""
    share = Fraction(factor).limit_denominator(1000) * num_experts_per_token / num_experts
    # In integers, because the number of tokens may be a tensor.
    return (num_tokens * share.numerator + (share.denominator - 1)) // share.denominator


def _sort(indices_TK: Any, num_experts: int) -> _Sorted:
    experts_N = ops.reshape(indices_TK, (-1,))
    choices_N = ops.argsort(experts_N)
    # A one-hot table of choices and experts would be large if there are many of both.
    loads_E = ops.segment_sum(ops.ones_like(experts_N), experts_N, num_segments=num_experts + 1)
    loads_E = loads_E[..., :-1]
    starts_E = ops.cast(ops.cumsum(loads_E), "int32") - loads_E
    last_or_expert_N = ops.minimum(experts_N, num_experts - 1)
    # `argsort` of a permutation is its inverse: the sorted place of each choice.
    rank_N = ops.argsort(choices_N) - ops.take(starts_E, last_or_expert_N)
    return _Sorted(choices_N, rank_N, last_or_expert_N, experts_N < num_experts, loads_E, starts_E)


def _fill(
    indices_TK: Any, order: _Sorted, expert_B: Any, first_rank_B: Any, block_size: Any
) -> Any:
    """Returns the token in each slot of the blocks (S)."""
    rank_BR = ops.expand_dims(first_rank_B, 1) + ops.expand_dims(_arange(block_size), 0)
    is_filled_BR = ops.less(rank_BR, ops.expand_dims(ops.take(order.loads, expert_B), 1))
    place_BR = ops.expand_dims(ops.take(order.starts, expert_B), 1) + rank_BR
    place_S = ops.reshape(ops.where(is_filled_BR, place_BR, 0), (-1,))
    tokens_S = ops.take(order.choices, place_S) // indices_TK.shape[1]
    return ops.where(ops.reshape(is_filled_BR, (-1,)), tokens_S, 0)


def _make_dispatch(
    indices_TK: Any, tokens_S: Any, slots_N: Any, is_computed_N: Any, **kwargs: Any
) -> ExpertDispatch:
    shape = ops.shape(indices_TK)
    return ExpertDispatch(
        token_of_slot=tokens_S,
        slot_of_choice=ops.reshape(ops.where(is_computed_N, slots_N, 0), shape),
        is_computed=ops.reshape(is_computed_N, shape),
        **kwargs,
    )


def _arange(stop: Any) -> Any:
    return ops.arange(stop, dtype="int32")
