import socket

import pytest

from keras_deepseek.errors import (
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
    PeerLostError,
)
from keras_deepseek.training.launch.plan import LaunchPlan


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.touch()
    return str(path)


def test_one_node_is_the_default(script):
    plan = LaunchPlan(script, 4, "torch")
    assert (plan.first_rank, plan.world_size, plan.num_servers) == (0, 4, 0)


@pytest.mark.parametrize(
    ("backend", "changes", "expected"),
    [
        ("tensorflow", {}, True),
        ("jax", {}, True),
        ("torch", {}, False),
        ("jax", {"nproc": 1}, False),
        ("jax", {"nproc": 1, "nnodes": 2, "node_rank": 0, "coordinator": "10.255.255.1:1"}, True),
        ("tensorflow", {"strategy": "parameter_server"}, True),
        ("jax", {"strategy": "parameter_server"}, False),
    ],
)
def test_processes_join_first_where_the_framework_must_know(script, backend, changes, expected):
    assert LaunchPlan(script, **{"nproc": 4, "backend": backend, **changes}).is_joined == expected


def test_a_script_that_joins_is_left_to_do_so(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("from keras_deepseek.training import join_cluster")
    assert not LaunchPlan(str(path), 4, "jax").is_joined


@pytest.mark.parametrize(
    ("text", "match"),
    [(b"x = (\n", r"train\.py', line 1: '\(' was never closed"), (b"x = '\0'\n", "null bytes")],
)
def test_a_script_that_python_can_t_read_is_refused(tmp_path, text, match):
    path = tmp_path / "train.py"
    path.write_bytes(text)
    with pytest.raises(InvalidInputError, match=match):
        LaunchPlan(str(path), 4, "torch")


def test_ranks_of_a_later_node_come_behind_those_before(script):
    plan = LaunchPlan(script, 4, "jax", nnodes=3, node_rank=2, coordinator="10.255.255.1:29500")
    assert (plan.first_rank, plan.world_size) == (8, 12)


@pytest.mark.parametrize(("ps_count", "nproc", "expected"), [(None, 3, 1), (2, 4, 2)])
def test_parameter_servers_leave_a_chief_and_a_worker(script, ps_count, nproc, expected):
    plan = LaunchPlan(script, nproc, "tensorflow", strategy="parameter_server", ps_count=ps_count)
    assert plan.num_servers == expected


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_the_chief_starts_the_others(script, backend):
    plan = LaunchPlan(script, 4, backend, strategy="parameter_server")
    assert (plan.num_started, plan.world_size) == (1, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nproc": 0}, "`--nproc` must be a positive integer"),
        ({"nnodes": 0}, "`--nnodes` must be a positive integer"),
        ({"max_restarts": -1}, "`--max-restarts` must be an integer of at least 0"),
        ({"grace_period": -1.0}, "`--grace-period` must be a finite number of at least 0"),
        ({"grace_period": float("nan")}, "`--grace-period` must be a finite number"),
        ({"backend": "tensorfow"}, "did you mean 'tensorflow'"),
        ({"script": "missing.py"}, "Expected a Python file to run; 'missing.py' does not exist"),
        ({"script": "."}, r"Expected a Python file to run; '\.' is a folder"),
        ({"strategy": "all-reduce"}, "did you mean 'allreduce'"),
        ({"node_rank": 1}, "received --rank 1 with --nnodes 1"),
        ({"node_rank": -1}, "`--rank` must be an integer of at least 0"),
        ({"nnodes": 2}, "--nnodes 2 needs --rank"),
        ({"nnodes": 2, "node_rank": 0}, "--nnodes 2 needs --coordinator"),
        ({"nnodes": 2, "node_rank": 2, "coordinator": "a:1"}, "--rank 2 with --nnodes 2"),
        ({"coordinator": "somewhere"}, "--coordinator must be HOST:PORT"),
        ({"ps_count": 1}, "--ps-count 1 needs --strategy parameter_server"),
        (
            {"ray": "auto", "strategy": "parameter_server", "backend": "tensorflow"},
            "--ray auto with --strategy parameter_server is for jax or torch",
        ),
        ({"ray": "auto", "coordinator": "a:1"}, "--coordinator is for nodes without Ray"),
        (
            {"ray": "auto", "nnodes": 2, "node_rank": 0, "coordinator": "a:1"},
            "--nnodes is for nodes without Ray: with --ray auto, --nproc counts the processes",
        ),
        (
            {
                "strategy": "parameter_server",
                "nproc": 4,
                "nnodes": 2,
                "node_rank": 1,
                "coordinator": "a:1",
            },
            "one launch with --ray ADDRESS",
        ),
    ],
)
def test_what_does_not_fit_is_refused(script, changes, message):
    arguments = {"script": script, "nproc": 2, "backend": "torch", **changes}
    with pytest.raises(InvalidInputError, match=message):
        LaunchPlan(**arguments)


@pytest.mark.parametrize(
    ("nproc", "ps_count", "message"),
    [
        (2, 1, "needs --nproc 3 or more: a chief, a worker and --ps-count 1"),
        (2, 2, "needs --nproc 4 or more: a chief, a worker and --ps-count 2"),
        (1, None, "needs --nproc 3 or more"),
        (3, 0, "`--ps-count` must be a positive integer"),
    ],
)
def test_too_many_servers_are_refused(script, nproc, ps_count, message):
    with pytest.raises(InvalidInputError, match=message):
        LaunchPlan(script, nproc, "tensorflow", strategy="parameter_server", ps_count=ps_count)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strategy": "parameter_server", "nnodes": 2, "node_rank": 1, "coordinator": "a:1"},
            "on tensorflow starts processes on one node only",
        ),
        (
            {"max_restarts": 1, "nnodes": 2, "node_rank": 1, "coordinator": "a:1"},
            "--max-restarts 1 works on one node only",
        ),
    ],
)
def test_what_is_not_there_yet_says_so(script, changes, message):
    with pytest.raises(NotSupportedError, match=message):
        LaunchPlan(**{"script": script, "nproc": 4, "backend": "tensorflow", **changes})


def test_a_port_in_use_is_refused_where_rank_0_would_listen(script):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InvalidInputError, match=f"can't listen at {address}"):
            LaunchPlan(script, 2, "torch", coordinator=address)
        LaunchPlan(script, 2, "torch", nnodes=2, node_rank=1, coordinator=address)


def test_a_cluster_of_ray_is_looked_for_before_anything_starts(script, monkeypatch):
    plan = {"script": script, "nproc": 2, "backend": "torch", "ray": "127.0.0.1:1"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[ray\]"):
        LaunchPlan(**plan)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(PeerLostError, match=r"There is no Ray cluster at '127.0.0.1:1': .*refused"):
        LaunchPlan(**plan)
    assert LaunchPlan(**plan | {"ray": "auto"}).is_on_ray
    assert not LaunchPlan(**plan | {"ray": None}).is_on_ray
