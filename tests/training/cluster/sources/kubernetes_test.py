import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.sources.claims import Claims
from keras_deepseek.training.cluster.sources.kubernetes import read_kubernetes


def test_the_index_is_the_rank_and_nothing_else_is_known():
    claims = read_kubernetes({"JOB_COMPLETION_INDEX": "3"})
    assert (claims.rank.value, claims.local_rank.value) == (3, 0)
    assert claims.world_size is None
    assert claims.coordinator is None


def test_outside_of_an_indexed_job_nothing_is_said():
    assert read_kubernetes({}) == Claims()


def test_a_malformed_index_is_refused():
    with pytest.raises(InvalidInputError, match="JOB_COMPLETION_INDEX must hold"):
        read_kubernetes({"JOB_COMPLETION_INDEX": "web-0"})
