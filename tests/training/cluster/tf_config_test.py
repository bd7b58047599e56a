import json

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.environment import ClusterHints, read_tf_config

CLUSTER = {"worker": ["b:1", "b:2"], "ps": ["c:1", "a:2"], "chief": ["a:1"]}


def read(cluster, task):
    return read_tf_config({"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})})


@pytest.mark.parametrize(
    ("task_type", "index", "rank", "local_rank"),
    [
        ("chief", 0, 0, 0),
        ("worker", 0, 1, 0),
        ("worker", 1, 2, 1),
        ("worker", "1", 2, 1),
        ("ps", 0, 3, 0),
        ("ps", 1, 4, 1),
    ],
)
def test_ranks_go_from_the_chief_over_workers_to_servers(task_type, index, rank, local_rank):
    hints = read(CLUSTER, {"type": task_type, "index": index})
    assert (hints.world_size.value, hints.rank.value) == (5, rank)
    assert hints.local_rank.value == local_rank
    assert hints.coordinator.value == "a:1"
    assert hints.task_type == task_type
    assert (hints.workers, hints.servers) == (("a:1", "b:1", "b:2"), ("c:1", "a:2"))


def test_the_first_worker_leads_where_there_is_no_chief():
    hints = read({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 1})
    assert (hints.rank.value, hints.coordinator.value) == (1, "a:1")


@pytest.mark.parametrize("text", ["", "{}", '{"cluster": {}}', '{"task": {"type": "worker"}}'])
def test_without_a_cluster_nothing_is_said(text):
    assert read_tf_config({"TF_CONFIG": text}) == ClusterHints()
    assert read_tf_config({}) == ClusterHints()


def test_an_evaluator_takes_no_part():
    cluster = {**CLUSTER, "evaluator": ["d:1"]}
    assert read(cluster, {"type": "chief", "index": 0}).world_size.value == 5
    with pytest.raises(InvalidInputError, match="takes no part in a training"):
        read(cluster, {"type": "evaluator", "index": 0})


@pytest.mark.parametrize("text", ["{", "[]", "3", "worker"])
def test_what_is_no_json_of_that_form_is_refused(text):
    with pytest.raises(InvalidInputError, match="TF_CONFIG must hold JSON"):
        read_tf_config({"TF_CONFIG": text})


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (["a:1"], "must hold a list of addresses for each type"),
        ({"worker": "a:1"}, "must hold a list of addresses for each type"),
        ({"worker": {"0": "a:1"}}, "must hold a list of addresses for each type"),
        ({"wroker": ["a:1"]}, "did you mean 'worker'"),
        ({"worker": ["a"]}, "Each address in TF_CONFIG must be HOST:PORT"),
        ({"worker": [1]}, "Each address in TF_CONFIG must be HOST:PORT"),
        ({"worker": ["a:1"], "ps": ["a:1"]}, "the address a:1 to more than one process"),
        ({"chief": ["a:1", "a:2"]}, "more than one chief"),
        ({"ps": ["a:1"]}, "neither chief nor worker"),
    ],
)
def test_a_malformed_cluster_is_refused(cluster, message):
    with pytest.raises(InvalidInputError, match=message):
        read(cluster, {"type": "worker", "index": 0})


@pytest.mark.parametrize(
    "task",
    [
        None,
        "worker",
        {},
        {"type": "worker"},
        {"index": 0},
        {"type": ["worker"], "index": 0},
        {"type": "master", "index": 0},
        {"type": "worker", "index": 2},
        {"type": "worker", "index": -1},
        {"type": "worker", "index": "one"},
        {"type": "worker", "index": None},
    ],
)
def test_a_task_outside_of_the_cluster_is_refused(task):
    with pytest.raises(InvalidInputError, match="beside a cluster of 2 worker, 2 ps, 1 chief"):
        read(CLUSTER, task)
