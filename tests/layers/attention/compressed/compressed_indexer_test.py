import keras
import numpy as np

from keras_deepseek.layers.attention.compressed.compressed_sparse_attention import CompressedIndexer
from keras_deepseek.layers.attention.compressed.token_packing import pack_tokens


def make_indexer(top_k):
    indexer = CompressedIndexer(
        16, 3, top_k, compress_rate=2, epsilon=1e-6, kernel_initializer="glorot_uniform"
    )
    indexer.build((None, None, 5), 4)
    return indexer


def choose(indexer, inputs, queries):
    """The choice, and the positions by which keys and queries were rotated."""
    rotated = []

    def rotate(x, positions):
        rotated.append(keras.ops.convert_to_numpy(positions).tolist())
        return x

    tokens = pack_tokens(inputs)
    chosen, updates = indexer.choose(tokens, keras.ops.convert_to_tensor(queries), None, rotate)
    assert updates == {}
    return keras.ops.convert_to_numpy(chosen), rotated


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def test_the_entries_of_the_highest_scores_are_chosen():
    indexer, inputs, queries = make_indexer(2), draw(1, 8, 5), draw(1, 8, 4)
    chosen, rotated = choose(indexer, inputs, queries)
    assert rotated == [[[0, 2, 4, 6]], [[*range(8)]]]
    entries, _ = indexer.compressor.compress(pack_tokens(inputs), None, lambda x, _: x)
    keys, weight, up = (
        keras.ops.convert_to_numpy(tensor).astype("float64")
        for tensor in (entries, indexer.head_weight.kernel, indexer.query_up.kernel)
    )
    for t in range(8):
        scores = np.maximum(np.einsum("q,qji,ni->jn", queries[0, t], up, keys[0]), 0)
        scores = (inputs[0, t] @ weight @ scores)[: (t + 1) // 2]
        expected = set(np.argsort(-scores)[:2].tolist())
        assert {n for n in chosen[0, t].tolist() if n < len(scores)} == expected
