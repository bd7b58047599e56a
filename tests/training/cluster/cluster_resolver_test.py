import json
import logging

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster import cluster_resolver
from keras_deepseek.training.cluster.cluster_resolver import choose_strategy, resolve_cluster
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
TF_CONFIG = {
    "TF_CONFIG": json.dumps(
        {
            "cluster": {"worker": ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.2:1", "10.0.0.2:2"]},
            "task": {"type": "worker", "index": 3},
        }
    )
}
KERAS = {
    "KERAS_DISTRIBUTION_JOB_ADDRESSES": "10.0.0.1:29500",
    "KERAS_DISTRIBUTION_NUM_PROCESSES": "4",
    "KERAS_DISTRIBUTION_PROCESS_ID": "3",
}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[01-02]",
}
KUBERNETES = {
    "JOB_COMPLETION_INDEX": "3",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "job-0.job",
    "MASTER_PORT": "29500",
}
BATCH_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
ADDRESS = "10.0.0.1:29500"


@pytest.fixture(autouse=True)
def _forget_what_was_warned_of():
    cluster_resolver._warn_once.cache_clear()


@pytest.mark.parametrize(
    ("environ", "local_rank", "coordinator"),
    [
        (TORCHRUN, 1, ADDRESS),
        (TF_CONFIG, 1, "10.0.0.1:1"),
        (KERAS, 0, ADDRESS),
        (SLURM, 1, "node01:12070"),
        (KUBERNETES, 0, "job-0.job:29500"),
    ],
)
def test_each_source_says_all_by_itself(environ, local_rank, coordinator):
    cluster = resolve_cluster("allreduce", environ=environ)
    assert (cluster.world_size, cluster.rank) == (4, 3)
    assert (cluster.local_rank, cluster.coordinator) == (local_rank, coordinator)


def test_arguments_alone_say_all():
    expected = ClusterSpec("allreduce", 4, 3, coordinator=ADDRESS)
    assert resolve_cluster("allreduce", 4, 3, ADDRESS, environ={}) == expected


def test_where_nobody_says_anything_one_process_trains():
    assert resolve_cluster("allreduce", environ={}) == ClusterSpec("allreduce")
    assert resolve_cluster("allreduce", 1, environ={}) == ClusterSpec("allreduce")
    assert resolve_cluster("allreduce", 1, 0, ADDRESS, environ={}).coordinator == ADDRESS


def test_the_environment_of_this_process_is_the_default(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert resolve_cluster("allreduce").rank == 3


def test_arguments_add_to_the_environment():
    cluster = resolve_cluster(
        "allreduce", world_size=4, coordinator=ADDRESS, environ={"JOB_COMPLETION_INDEX": "3"}
    )
    assert (cluster.rank, cluster.coordinator) == (3, ADDRESS)
    assert resolve_cluster("allreduce", 4, 3, ADDRESS, environ=TORCHRUN).local_rank == 1


def test_sources_that_agree_are_taken_together():
    cluster = resolve_cluster("allreduce", environ={**TF_CONFIG, **SLURM, **KERAS, **TORCHRUN})
    assert (cluster.world_size, cluster.rank, cluster.coordinator) == (4, 3, ADDRESS)
    assert cluster.task_type == "worker"
    assert len(cluster.workers) == 4


def test_a_stated_address_counts_more_than_a_derived_one():
    assert resolve_cluster("allreduce", coordinator=ADDRESS, environ=SLURM).coordinator == ADDRESS
    both = {**TORCHRUN, **TF_CONFIG, "MASTER_PORT": "1234"}
    assert resolve_cluster("allreduce", environ=both).coordinator == "10.0.0.1:1234"


@pytest.mark.parametrize(
    ("arguments", "environ", "messages"),
    [
        ({"world_size": 8}, TORCHRUN, ["the argument world_size=8", "WORLD_SIZE=4"]),
        ({"rank": 0}, TORCHRUN, ["the argument rank=0", "RANK=3"]),
        (
            {"coordinator": "10.0.0.2:1"},
            TORCHRUN,
            ["coordinator='10.0.0.2:1'", "MASTER_ADDR=10.0.0.1 with MASTER_PORT=29500"],
        ),
        ({"world_size": 8}, TF_CONFIG, ["world_size=8", "the 4 addresses in TF_CONFIG"]),
        ({"rank": 1}, TF_CONFIG, ["rank=1", "rank 3, which is worker 3 in TF_CONFIG"]),
        ({"world_size": 2}, KERAS, ["world_size=2", "KERAS_DISTRIBUTION_NUM_PROCESSES=4"]),
        ({"rank": 0}, KERAS, ["rank=0", "KERAS_DISTRIBUTION_PROCESS_ID=3"]),
        ({"world_size": 2}, SLURM, ["world_size=2", "SLURM_NTASKS=4"]),
        ({"rank": 0}, SLURM, ["rank=0", "SLURM_PROCID=3"]),
        ({"rank": 0}, KUBERNETES, ["rank=0", "JOB_COMPLETION_INDEX=3"]),
        ({}, {**TORCHRUN, **TF_CONFIG, "RANK": "2"}, ["RANK=2", "worker 3 in TF_CONFIG"]),
        ({}, {**TORCHRUN, **KERAS, "WORLD_SIZE": "5"}, ["WORLD_SIZE=5", "NUM_PROCESSES=4"]),
        ({}, {**TORCHRUN, **KERAS, "MASTER_PORT": "1"}, ["MASTER_PORT=1", "JOB_ADDRESSES="]),
        ({}, {**TORCHRUN, **SLURM, "LOCAL_RANK": "0"}, ["LOCAL_RANK=0", "SLURM_LOCALID=1"]),
        ({}, {**TORCHRUN, **SLURM, "WORLD_SIZE": "8"}, ["WORLD_SIZE=8", "SLURM_NTASKS=4"]),
        ({}, {**KUBERNETES, "RANK": "0"}, ["RANK=0", "JOB_COMPLETION_INDEX=3"]),
    ],
)
def test_a_contradiction_names_both_sides(arguments, environ, messages):
    with pytest.raises(InvalidInputError, match="Unset the wrong one") as raised:
        resolve_cluster("allreduce", **arguments, environ=environ)
    for message in messages:
        assert message in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        ({"rank": 1}, {}, "the argument rank=1, but not the number of processes"),
        ({"rank": 0}, {}, "the argument rank=0, but not the number of processes"),
        ({"coordinator": ADDRESS}, {}, "but not the number of processes"),
        ({"world_size": 4}, {}, "the argument world_size=4, but not the rank"),
        ({"world_size": 4, "rank": 0}, {}, "4 processes need the address"),
        ({}, {"RANK": "1"}, "RANK=1, but not the number of processes"),
        ({}, {"WORLD_SIZE": "2"}, "WORLD_SIZE=2, but not the rank"),
        ({}, {"RANK": "0", "WORLD_SIZE": "2"}, "2 processes need the address"),
        (
            {},
            {"MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "MASTER_PORT=1, but not the number of processes",
        ),
        (
            {},
            {"JOB_COMPLETION_INDEX": "0"},
            "JOB_COMPLETION_INDEX=0, but not the number of processes",
        ),
        ({"world_size": 2}, {"JOB_COMPLETION_INDEX": "0"}, "2 processes need the address"),
        (
            {"world_size": 2},
            {"JOB_COMPLETION_INDEX": "2"},
            "world_size=2 and JOB_COMPLETION_INDEX=2",
        ),
        ({}, {**TORCHRUN, "RANK": "4"}, "received WORLD_SIZE=4 and RANK=4"),
        ({"world_size": 1, "rank": 1}, {}, "0 <= rank < world_size"),
    ],
)
def test_what_is_not_whole_is_refused_at_once(arguments, environ, message):
    with pytest.raises(InvalidInputError, match=message):
        resolve_cluster("allreduce", **arguments, environ=environ)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"world_size": "4"}, "`world_size` must be a positive integer"),
        ({"rank": -1}, "`rank` must be an integer of at least 0"),
        ({"coordinator": "somewhere"}, "`coordinator` must be HOST:PORT"),
    ],
)
@pytest.mark.parametrize("strategy", [None, "allreduce"])
def test_a_malformed_argument_is_refused_with_and_without_a_strategy(strategy, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        resolve_cluster(strategy, **arguments, environ={})


def test_an_unknown_strategy_is_found_before_the_environment_is_looked_at():
    with pytest.raises(InvalidInputError, match="Unknown distributed_strategy 'ddp'"):
        resolve_cluster("ddp", environ={"RANK": "first"})


@pytest.mark.parametrize(
    "scheduler", [{**SLURM, "SLURM_NTASKS": "2"}, {"JOB_COMPLETION_INDEX": "0"}]
)
def test_a_scheduler_that_started_launchers_counts_those(scheduler):
    cluster = resolve_cluster(
        "allreduce", environ={**scheduler, **TORCHRUN, "LOCAL_WORLD_SIZE": "2"}
    )
    assert (cluster.world_size, cluster.rank) == (4, 3)


def test_a_batch_script_of_slurm_is_no_task():
    with pytest.raises(InvalidInputError, match="Start the script with srun"):
        resolve_cluster("allreduce", environ=BATCH_SCRIPT)
    assert resolve_cluster("allreduce", environ={**BATCH_SCRIPT, **TORCHRUN}).rank == 3
    assert resolve_cluster("allreduce", world_size=1, environ=BATCH_SCRIPT).world_size == 1


def test_parameter_servers_stand_behind_the_workers():
    config = {
        "cluster": {"chief": ["a:1"], "worker": ["b:1", "b:2"], "ps": ["c:1"]},
        "task": {"type": "ps", "index": 0},
    }
    cluster = resolve_cluster("parameter_server", environ={"TF_CONFIG": json.dumps(config)})
    assert (cluster.world_size, cluster.rank, cluster.task_type) == (4, 3, "ps")
    assert (cluster.workers, cluster.servers) == (("a:1", "b:1", "b:2"), ("c:1",))


@pytest.mark.parametrize("environ", [TORCHRUN, TF_CONFIG, KERAS, SLURM, KUBERNETES])
def test_without_a_strategy_a_process_trains_alone_and_says_so_once(caplog, environ):
    with caplog.at_level(logging.WARNING, logger="keras_deepseek"):
        for _ in range(2):
            assert resolve_cluster(None, environ=environ) == ClusterSpec()
    (record,) = caplog.records
    assert "each process trains alone" in record.getMessage()
    assert "4" in record.getMessage()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"WORLD_SIZE": "many"},
        {"TF_CONFIG": "{"},
        BATCH_SCRIPT,
        {"JOB_COMPLETION_INDEX": "3"},
    ],
)
def test_without_a_strategy_nothing_else_is_said(caplog, environ):
    with caplog.at_level(logging.DEBUG, logger="keras_deepseek"):
        assert resolve_cluster(None, environ=environ) == ClusterSpec()
    assert caplog.records == []


def test_who_asks_for_one_process_is_not_warned(caplog):
    with caplog.at_level(logging.WARNING, logger="keras_deepseek"):
        assert resolve_cluster(None, 1, 0, environ=TORCHRUN) == ClusterSpec()
    assert caplog.records == []


@pytest.mark.parametrize("launched", ["allreduce", "parameter_server"])
def test_who_says_nothing_has_the_launcher_s_strategy(launched):
    environ = {"KERAS_DEEPSEEK_STRATEGY": launched}
    assert choose_strategy(None, None, None, None, environ=environ) == launched
    assert choose_strategy(launched, None, None, None, environ=environ) == launched
    assert choose_strategy(None, 1, 0, None, environ=environ) is None
    strategy = object()
    assert choose_strategy(strategy, None, None, None, environ=environ) is strategy


def test_without_a_launcher_nothing_is_chosen():
    assert choose_strategy(None, None, None, None, environ={}) is None
    assert choose_strategy("allreduce", environ=TORCHRUN) == "allreduce"


def test_a_strategy_whose_processes_were_not_started_is_refused():
    environ = {"KERAS_DEEPSEEK_STRATEGY": "parameter_server"}
    with pytest.raises(InvalidInputError, match="started the script, as one chief"):
        choose_strategy("allreduce", environ=environ)
    with pytest.raises(InvalidInputError, match="Unknown distributed_strategy 'ddp'"):
        choose_strategy(None, environ={"KERAS_DEEPSEEK_STRATEGY": "ddp"})


@pytest.mark.parametrize("arguments", [{"world_size": 2, "rank": 0}, {"coordinator": ADDRESS}])
def test_several_processes_without_a_strategy_are_refused(arguments):
    with pytest.raises(InvalidInputError, match="needs a distributed_strategy"):
        resolve_cluster(None, **arguments, environ={})
