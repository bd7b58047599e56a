import numpy as np
from keras import ops

from keras_deepseek.models.generation.sampler import GREEDY, Sampler
from keras_deepseek.models.generation.speculative_steps import accept_drafts
from tests.oracles.sampling import bound_chi_squared, compute_chi_squared

VOCABULARY_SIZE = 4


def accept(scores, drafts, draft_scores, uniforms, sampler):
    tensors = [
        ops.convert_to_tensor(np.asarray(array, dtype))
        for array, dtype in (
            (scores, "float32"),
            (drafts, "int32"),
            (draft_scores, "float32"),
            (uniforms, "float32"),
        )
    ]
    tokens, num_accepted = accept_drafts(*tensors, sampler.rules)
    return ops.convert_to_numpy(tokens), ops.convert_to_numpy(num_accepted).tolist()


def make_tables(seed):
    """Returns the distributions of a token behind none, one and two others."""
    rng = np.random.default_rng(seed)
    return [softmax_rows(rng.normal(size=(VOCABULARY_SIZE,) * (n + 1)) * 1.5) for n in range(3)]


def softmax_rows(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def draw(probabilities, rng):
    ends = np.cumsum(probabilities, axis=-1)
    return (rng.random((len(ends), 1)) * ends[:, -1:] > ends).sum(axis=-1)


def draw_sequences(number, p, q, seed):
    """Returns three tokens a row: as many as drafts bring, and the rest from the model itself."""
    rng = np.random.default_rng(seed)
    first = draw(np.tile(q[0], (number, 1)), rng)
    drafts = np.stack([first, draw(q[1][first], rng)], axis=1)
    scores = [np.tile(p[0], (number, 1)), p[1][first], p[2][first, drafts[:, 1]]]
    draft_scores = [np.tile(q[0], (number, 1)), q[1][first]]
    tokens, num_accepted = accept(
        np.log(np.stack(scores, axis=1)),
        drafts,
        np.log(np.stack(draft_scores, axis=1)),
        rng.random((number, 3), dtype="float32"),
        Sampler(),
    )
    num_kept = np.asarray(num_accepted) - 1
    for row in np.flatnonzero(num_kept == 0):
        tokens[row, 1] = rng.choice(VOCABULARY_SIZE, p=p[1][tokens[row, 0]])
    for row in np.flatnonzero(num_kept <= 1):
        tokens[row, 2] = rng.choice(VOCABULARY_SIZE, p=p[2][tokens[row, 0], tokens[row, 1]])
    return tokens, num_kept


def test_the_distribution_is_that_of_the_model_alone():
    p, q = make_tables(0), make_tables(1)
    tokens, num_kept = draw_sequences(30_000, p, q, seed=2)
    assert np.bincount(num_kept).min() > 2000  # Each way was gone often.
    expected = (p[0][:, None, None] * p[1][:, :, None] * p[2]).ravel()
    sequence_ids = np.ravel_multi_index(tuple(tokens.T), (VOCABULARY_SIZE,) * 3)
    counts = np.bincount(sequence_ids, minlength=expected.size)
    statistic, degrees = compute_chi_squared(counts, expected)
    assert statistic < bound_chi_squared(degrees)


def test_the_statistic_sees_what_drafts_alone_would_bring():
    p, q = make_tables(0), make_tables(1)
    mixed = 0.9 * p[0] + 0.1 * q[0]
    counts = np.random.default_rng(0).multinomial(30_000, mixed)
    statistic, degrees = compute_chi_squared(counts, p[0])
    assert statistic > bound_chi_squared(degrees)


def test_drafts_of_the_same_distribution_are_all_kept():
    p = make_tables(0)
    tokens, num_accepted = draw_sequences_of_one(p)
    assert num_accepted == [3] * 50
    assert tokens.shape == (50, 3)


def draw_sequences_of_one(p):
    rng = np.random.default_rng(4)
    scores = np.log(np.tile(p[0], (50, 3, 1)))
    drafts = rng.integers(0, VOCABULARY_SIZE, (50, 2))
    uniforms = rng.random((50, 3), dtype="float32")
    return accept(scores, drafts, scores[:, :2], uniforms, Sampler())


def test_greedy_keeps_what_the_model_chooses():
    chosen = np.asarray([[1, 2, 3], [1, 2, 3], [0, 0, 0]])
    scores = np.eye(4)[chosen] * 3
    drafts = [[1, 2], [1, 0], [3, 3]]
    zeros = np.zeros((3, 2, 4)), np.zeros((3, 3))
    tokens, num_accepted = accept(scores, drafts, *zeros, GREEDY)
    assert num_accepted == [3, 2, 1]
    assert tokens[0].tolist() == [1, 2, 3]
    assert tokens[1, :2].tolist() == [1, 2]
    assert tokens[2, 0] == 0
