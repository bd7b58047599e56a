import keras
import numpy as np
import pytest

from keras_deepseek.backend.processes.weight_parts import Division, PartSums

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


def test_few_gradients_are_in_memory_at_once():
    division = Division([2_000_000] * 12, 1, by_weight=False)
    under_way = []

    def exchange(rows):
        under_way.append(rows)

        def wait():
            under_way.pop()
            return rows

        assert len(under_way) <= 3
        return wait

    sums = PartSums(division, 0, exchange)
    for index in reversed(range(12)):
        sums.receive(index, keras.ops.full((2_000_000,), index, "float32"))
    for index, vector in enumerate(sums.finish([None] * 12)):
        assert keras.ops.convert_to_numpy(vector).tolist()[::999_999] == [index] * 3
    assert not under_way


def test_parts_are_summed_and_put_together_again(division):
    """Each process sends its rows to all others, and hears theirs, in a list of all rows."""
    gradients = [draw(rank) for rank in range(NUM_PROCESSES)]
    rows = [[] for _ in range(NUM_PROCESSES)]

    def exchange_of(rank):
        number = iter(range(len(division.buckets)))

        def exchange(own):
            rows[rank].append(own)
            bucket = next(number)
            return lambda: keras.ops.stack([rows[other][bucket][rank] for other in range(4)])

        return exchange

    sums = [PartSums(division, rank, exchange_of(rank)) for rank in range(NUM_PROCESSES)]
    for rank, part_sums in enumerate(sums):
        for index in (3, 3, 5, 4, 0, 2, 1):  # In the order of no bucket, and one twice.
            part_sums.receive(index, keras.ops.convert_to_tensor(gradients[rank][index]))
    parts = [
        part_sums.finish([keras.ops.convert_to_tensor(array) for array in arrays])
        for part_sums, arrays in zip(sums, gradients, strict=True)
    ]
    joined = [
        [division.pad(bucket, [parts[rank][weight] for weight in bucket]) for rank in range(4)]
        for bucket in division.buckets
    ]
    buckets = iter(joined)
    whole = {}
    gather = lambda _: lambda: keras.ops.stack(next(buckets))  # noqa: E731
    division.share(parts[0], gather, whole.__setitem__)
    for weight, vector in whole.items():
        expected = sum(gradient[weight] for gradient in gradients)
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(vector), expected)
