import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.training.data.token_masking import count_masked, mask_tokens

MASK, VOCABULARY_SIZE = 4, 50


def mask(tokens, **options):
    options = {"special_token_ids": (0, 1, 2), **options}
    return mask_tokens(tokens, mask_token_id=MASK, vocabulary_size=VOCABULARY_SIZE, **options)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).integers(5, VOCABULARY_SIZE, shape)


@settings(max_examples=20)
@given(st.integers(0, 20), st.integers(0, 5), st.floats(0.01, 0.99), st.integers(0, 99))
def test_each_row_has_its_share_of_targets_and_no_special_one(real, special, share, seed):
    tokens = np.concatenate([np.ones((2, special), int), draw(2, real, seed=seed)], axis=1)
    masked, targets = mask(tokens, share=share, seed=seed)
    assert masked.dtype == targets.dtype == "int32"
    chosen = targets != -100
    assert chosen.sum(axis=1).tolist() == [count_masked(real, share)] * 2
    assert not chosen[:, :special].any()
    np.testing.assert_array_equal(targets[chosen], tokens[chosen])
    np.testing.assert_array_equal(masked[~chosen], tokens[~chosen])


def test_of_the_chosen_80_in_100_are_the_mask_and_10_another_token():
    tokens = draw(200, 500)
    masked, targets = mask(tokens)
    chosen = targets != -100
    assert chosen.mean() == pytest.approx(0.15)
    masked_tokens, original_tokens = masked[chosen], tokens[chosen]
    assert np.mean(masked_tokens == MASK) == pytest.approx(0.8, abs=0.01)
    # A random token may be the one that was there.
    assert np.mean(masked_tokens == original_tokens) == pytest.approx(0.1 + 0.1 / 45, abs=0.01)
    replacements = masked_tokens[(masked_tokens != MASK) & (masked_tokens != original_tokens)]
    assert set(replacements) == set(range(3, VOCABULARY_SIZE)) - {MASK}


def test_every_place_is_chosen_as_often():
    _, targets = mask(draw(4000, 8), share=0.25)
    assert np.abs((targets != -100).mean(axis=0) - 0.25).max() < 0.03


def test_the_seed_says_what_is_drawn():
    tokens = draw(4, 30)
    first, again, other = (mask(tokens, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_shares_may_leave_the_tokens_as_they_are():
    tokens = draw(4, 30)
    masked, targets = mask(tokens, mask_share=0.0, random_share=0.0, ignore_class=-1)
    np.testing.assert_array_equal(masked, tokens)
    assert (targets >= 0).sum() == 4 * count_masked(30)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([1, 2], {}, r"shape \(num_rows, length\)"),
        ([[1.0]], {}, "must be integers"),
        ([[50]], {}, "below vocabulary_size=50; received 50 to 50"),
        ([[5]], {"share": 1.5}, "`share` must be"),
        ([[5]], {"mask_share": 0.8, "random_share": 0.3}, "must add up to at most 1"),
        ([[5]], {"special_token_ids": range(50)}, "All 50 tokens are special"),
    ],
)
def test_what_is_refused(tokens, options, message):
    with pytest.raises(InvalidInputError, match=message):
        mask(tokens, **options)
