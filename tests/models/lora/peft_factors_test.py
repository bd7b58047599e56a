import numpy as np
import pytest

from keras_deepseek.models.lora.peft_modules import (
    LinearLayout,
    join_factors,
    split_blocks,
    split_shared,
)


def draw(layout, width, rank=2, seed=0):
    rng = np.random.default_rng(seed)
    shape = (layout.num_inputs, layout.num_blocks, rank)
    return rng.normal(size=shape), rng.normal(size=(rank, width))


def product(layout, factors):
    """The kernel's change as a `Linear` has it, by its definition."""
    parts = [
        np.zeros((layout.num_inputs, layout.num_blocks, width))
        if factor is None
        else factor[0] @ factor[1]
        for width, factor in zip(layout.widths, factors, strict=True)
    ]
    return np.concatenate(parts, axis=-1).reshape(layout.num_inputs, -1).T


LAYOUTS = [LinearLayout(5, 1, (4,)), LinearLayout(7, 3, (4, 2)), LinearLayout(6, 1, (3, 1))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("missing", [None, 0])
def test_the_product_is_that_of_the_kernels_and_comes_back(layout, missing):
    factors = [draw(layout, width, seed=i) for i, width in enumerate(layout.widths)]
    if missing is not None and len(factors) > 1:
        factors[missing] = None
    down, up = join_factors(layout, factors)
    np.testing.assert_allclose(up @ down, product(layout, factors), atol=1e-12)
    parts = split_blocks(layout, down, up, [factor is not None for factor in factors])
    for part, factor in zip(parts, factors, strict=True):
        assert (part is None) == (factor is None)
        for ours, theirs in zip(part or (), factor or (), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def draw_linear(layout, rank):
    rng = np.random.default_rng(0)
    outputs = layout.num_blocks * sum(layout.widths)
    return rng.normal(size=(rank, layout.num_inputs)), rng.normal(size=(outputs, rank))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rank", [1, 3])
def test_any_linear_s_is_one_of_the_kernels_and_comes_back(layout, rank):
    """Rank 1 has one A a head, in blocks; of rank 3 a head is less wide than three blocks."""
    down, up = draw_linear(layout, rank)
    everywhere = [True] * len(layout.widths)
    parts = split_shared(layout, down, up, everywhere)
    np.testing.assert_allclose(product(layout, parts), up @ down, atol=1e-12)
    for (_, b), width in zip(parts, layout.widths, strict=True):
        whole = layout.num_blocks == 1
        assert len(b) == (rank if whole else min(layout.num_blocks * rank, width))
    again = join_factors(layout, parts)
    np.testing.assert_allclose(again[1] @ again[0], up @ down, atol=1e-12)
    if layout.num_blocks * rank <= min(layout.widths) or layout.num_blocks == 1:
        for ours, theirs in zip(again, (down, up), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    else:
        assert len(again[0]) <= layout.num_inputs * len(layout.widths)


def test_what_a_kernel_without_one_would_need_is_refused():
    layout = LinearLayout(6, 2, (3, 1))
    down, up = draw_linear(layout, 2)
    assert split_shared(layout, down, up, [True, False]) is None
    assert split_blocks(layout, down, up, [True, True]) is None
    up.reshape(2, 4, 2)[:, 3:] = 0
    factors, none = split_shared(layout, down, up, [True, False])
    assert none is None
    np.testing.assert_allclose(product(layout, [factors, None]), up @ down, atol=1e-12)
