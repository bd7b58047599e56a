import itertools

import pytest

from keras_deepseek.backend.processes.group_queue import GroupQueue

GROUPS = [[3, 2], [2, 1], [0]]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_groups_begin_in_their_order_once_they_are_whole(order):
    begun = []
    arrivals = GroupQueue(GROUPS, begun.append)
    for number, index in enumerate(order):
        arrivals.add(index)
        is_whole = [set(group) <= set(order[: number + 1]) for group in GROUPS]
        assert begun == list(range([*is_whole, False].index(False)))
    assert begun == [0, 1, 2]


def test_what_comes_twice_counts_once():
    begun = []
    arrivals = GroupQueue(GROUPS, begun.append)
    for index in (3, 3, 2, 3):
        arrivals.add(index)
    assert begun == [0]


def test_a_group_of_nothing_begins_when_its_turn_comes():
    begun = []
    arrivals = GroupQueue([[0], [], [1]], begun.append)
    arrivals.add(0)
    assert begun == [0, 1]
