import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.parameter_server.shards import Shard, split_by_size


def test_the_largest_are_spread_first():
    shards = split_by_size(list("abcd"), [10, 1, 8, 2], [], 2)
    assert shards == [Shard([0, 1], []), Shard([2, 3], [])]


def test_what_layers_keep_goes_where_there_is_room():
    assert split_by_size(list("ab"), [10, 1], [4, 2], 2) == [Shard([0], []), Shard([1], [0, 1])]


def test_variables_of_one_path_stay_together():
    shards = split_by_size(["a", "b", "a"], [5, 9, 5], [], 2)
    assert shards == [Shard([0, 2], []), Shard([1], [])]


def test_more_servers_than_variables_are_refused():
    with pytest.raises(InvalidInputError, match=r"num_servers=3, and the model has 2 trainable"):
        split_by_size(["a", "b", "a"], [1, 1, 1], [], 3)


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=40), st.integers(1, 3))
def test_each_is_held_once_and_no_shard_is_much_larger(sizes, num_shards):
    shards = split_by_size([str(index) for index in range(len(sizes))], sizes, [], num_shards)
    assert sorted(place for shard in shards for place in shard.variables) == list(range(len(sizes)))
    loads = [sum(sizes[place] for place in shard.variables) for shard in shards]
    assert all(shard.variables for shard in shards)
    assert max(loads) - min(loads) <= max(sizes)
