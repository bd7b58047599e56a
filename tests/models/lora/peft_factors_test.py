import numpy as np
import pytest

from keras_deepseek.models.lora.peft_factors import LinearLayout, join_factors, split_factors


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


LAYOUTS = [LinearLayout(5, 1, (4,)), LinearLayout(5, 3, (4, 2)), LinearLayout(6, 1, (3, 1))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("missing", [None, 0])
def test_the_product_is_that_of_the_kernels_and_comes_back(layout, missing):
    factors = [draw(layout, width, seed=i) for i, width in enumerate(layout.widths)]
    if missing is not None and len(factors) > 1:
        factors[missing] = None
    down, up = join_factors(layout, factors)
    np.testing.assert_allclose(up @ down, product(layout, factors), atol=1e-12)
    parts = split_factors(layout, down, up, [factor is not None for factor in factors])
    np.testing.assert_array_equal(join_factors(layout, parts)[1], up)
    np.testing.assert_allclose(product(layout, parts), up @ down, atol=1e-12)


def test_one_matrix_for_several_kernels_is_one_for_each():
    layout = LinearLayout(6, 1, (3, 1))
    rng = np.random.default_rng(0)
    down, up = rng.normal(size=(3, 6)), rng.normal(size=(4, 3))
    parts = split_factors(layout, down, up, [True, True])
    np.testing.assert_allclose(product(layout, parts), up @ down, atol=1e-12)
    assert split_factors(layout, down, up, [True, False]) is None


def test_one_matrix_for_several_heads_is_none_that_keras_has():
    layout = LinearLayout(6, 2, (3,))
    rng = np.random.default_rng(0)
    assert split_factors(layout, rng.normal(size=(4, 6)), rng.normal(size=(6, 4)), [True]) is None
