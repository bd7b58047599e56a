import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.environment import ClusterHints, read_kubernetes


def test_the_index_is_the_rank_and_nothing_else_is_known():
    hints = read_kubernetes({"JOB_COMPLETION_INDEX": "3"})
    assert (hints.rank.value, hints.local_rank.value) == (3, 0)
    assert hints.world_size is None
    assert hints.coordinator is None


def test_outside_of_an_indexed_job_nothing_is_said():
    assert read_kubernetes({}) == ClusterHints()


def test_a_malformed_index_is_refused():
    with pytest.raises(InvalidInputError, match="JOB_COMPLETION_INDEX must hold"):
        read_kubernetes({"JOB_COMPLETION_INDEX": "web-0"})
