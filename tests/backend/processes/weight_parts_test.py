import keras
import numpy as np
import pytest

from keras_deepseek.backend.processes.weight_parts import Division

SIZES = [1_000_001, 7, 1, 12, 4_500_000, 3]
"""The last two fill a bucket; some have fewer numbers than there are processes."""
NUM_PROCESSES = 4


@pytest.fixture(params=[False, True], ids=["equal pieces", "whole weights"])
def division(request):
    return Division(SIZES, NUM_PROCESSES, by_weight=request.param)


def draw(seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 9, size).astype("float32") for size in SIZES]


def test_each_number_belongs_to_one_process(division):
    for weight, size in enumerate(SIZES):
        pieces = [pieces[weight] for pieces in division.pieces if pieces[weight].size]
        assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
        assert pieces[-1].stop == size
        assert not division.by_weight or len(pieces) == 1
    assert sorted(weight for bucket in division.buckets for weight in bucket) == list(range(6))


def test_the_numbers_are_divided_equally():
    division = Division(SIZES, NUM_PROCESSES, by_weight=False)
    loads = [sum(piece.size for piece in pieces) for pieces in division.pieces]
    assert max(loads) - min(loads) <= 3 * len(SIZES)
    assert len(division.buckets) > 1


def test_large_weights_go_to_different_processes():
    sizes = [10, 20, 30, 40, 40, 30, 20, 10]
    division = Division(sizes, NUM_PROCESSES, by_weight=True)
    assert [sum(piece.size for piece in pieces) for pieces in division.pieces] == [50] * 4


def test_rows_of_pieces_are_summed_and_put_together_again(division):
    weights = [[keras.ops.convert_to_tensor(array) for array in draw(seed)] for seed in range(4)]
    expected = [sum(arrays) for arrays in zip(*map(draw, range(4)), strict=True)]
    ranks = range(NUM_PROCESSES)
    for bucket in division.buckets:
        sums = []
        for rank in ranks:
            rows = [
                division.join(bucket, [vectors[i] for i in bucket], rank) for vectors in weights
            ]
            sums.append(division.split(bucket, sum(rows), rank))
        assert len({division.pad(bucket, pieces).shape for pieces in sums}) == 1
        for weight, pieces in zip(bucket, zip(*sums, strict=True), strict=True):
            vector = keras.ops.convert_to_numpy(keras.ops.concatenate(pieces))
            np.testing.assert_array_equal(vector, expected[weight])
