import json

import pytest

from keras_deepseek.backend.processes.rendezvous import SECRET_VARIABLE
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.cluster_resolver import resolve_cluster
from keras_deepseek.training.launch.plan import LaunchPlan
from keras_deepseek.training.launch.rank_environment import (
    NUM_SERVERS,
    NUM_WORKERS,
    RAY_ADDRESS,
    STRATEGY,
    make_addresses,
    make_environment,
    make_secret,
)


def make_all(plan, environ, restart=0):
    addresses = make_addresses(plan)
    return [
        make_environment(plan, local_rank, addresses, restart, environ)
        for local_rank in range(plan.nproc)
    ]


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.touch()
    return str(path)


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_each_process_finds_its_place_in_it(script, backend):
    environments = make_all(LaunchPlan(script, 3, backend), {})
    clusters = [resolve_cluster("allreduce", environ=environ) for environ in environments]
    assert [cluster.rank for cluster in clusters] == [0, 1, 2]
    assert [cluster.local_rank for cluster in clusters] == [0, 1, 2]
    assert {cluster.world_size for cluster in clusters} == {3}
    (coordinator,) = {cluster.coordinator for cluster in clusters}
    assert coordinator.startswith("127.0.0.1:")
    assert all(("TF_CONFIG" in environ) == (backend == "tensorflow") for environ in environments)


@pytest.mark.parametrize(
    ("backend", "ray"), [("tensorflow", None), ("jax", "auto"), ("torch", "auto")]
)
def test_a_chief_learns_how_many_it_starts(script, backend, ray, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # The extra `ray` is there.
    plan = LaunchPlan(script, 5, backend, strategy="parameter_server", ps_count=2, ray=ray)
    environ = make_environment(plan, 0, make_addresses(plan), 0, {})
    assert (environ[NUM_WORKERS], environ[NUM_SERVERS]) == ("2", "2")
    assert environ.get(RAY_ADDRESS) == ray
    assert "TF_CONFIG" not in environ
    cluster = resolve_cluster("parameter_server", environ=environ)
    assert (cluster.world_size, cluster.rank) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"nproc": 2}, "allreduce"),
        ({"nproc": 1}, None),  # It trains as by itself.
        ({"nproc": 3, "strategy": "parameter_server"}, "parameter_server"),
        ({"nproc": 1, "nnodes": 2, "node_rank": 1, "coordinator": "10.0.0.1:1"}, "allreduce"),
    ],
)
def test_several_processes_learn_the_strategy(script, changes, expected):
    plan = LaunchPlan(script, backend="torch", **changes)
    environ = make_environment(plan, 0, make_addresses(plan), 0, {STRATEGY: "of another launcher"})
    assert environ.get(STRATEGY) == expected


def test_several_nodes_meet_at_the_coordinator(script):
    plan = LaunchPlan(script, 2, "tensorflow", nnodes=2, node_rank=1, coordinator="[fe80::1]:29500")
    first, second = make_all(plan, {})
    assert (first["RANK"], second["RANK"], second["LOCAL_RANK"]) == ("2", "3", "1")
    assert (first["MASTER_ADDR"], first["MASTER_PORT"]) == ("fe80::1", "29500")
    assert "TF_CONFIG" not in first
    assert resolve_cluster("allreduce", environ=first).coordinator == "[fe80::1]:29500"


def test_a_coordinator_is_the_first_of_tensorflow_s_addresses(script):
    plan = LaunchPlan(script, 2, "tensorflow", coordinator="192.0.2.1:29500")
    (environ, _) = make_all(plan, {})
    workers = json.loads(environ["TF_CONFIG"])["cluster"]["worker"]
    assert workers[0] == "192.0.2.1:29500"
    assert workers[1].startswith("127.0.0.1:")


def test_what_another_launcher_said_is_overruled(script):
    inherited = {
        "RANK": "7",
        "WORLD_SIZE": "9",
        "TF_CONFIG": "{}",
        "KERAS_DISTRIBUTION_PROCESS_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "7",
        "SLURM_NTASKS": "9",
        "KERAS_BACKEND": "jax",
        "OTHER": "stays",
    }
    environ = make_all(LaunchPlan(script, 2, "torch"), inherited)[1]
    assert resolve_cluster("allreduce", environ=environ).rank == 1
    assert environ["OTHER"] == "stays"
    assert environ["KERAS_BACKEND"] == "jax"  # The script sets PyTorch itself.


def test_the_number_of_the_restart_is_told_and_output_is_not_held_back(script):
    plan = LaunchPlan(script, 1, "torch")
    assert make_all(plan, {}, restart=2)[0]["KERAS_DEEPSEEK_RESTART"] == "2"
    environ = {"KERAS_DEEPSEEK_RESTART": "3"}  # Of what starts this launcher again.
    assert make_all(plan, environ, restart=2)[0]["KERAS_DEEPSEEK_RESTART"] == "5"
    assert make_all(plan, {})[0]["PYTHONUNBUFFERED"] == "1"
    assert make_all(plan, {"PYTHONUNBUFFERED": ""})[0]["PYTHONUNBUFFERED"] == ""


def test_each_of_several_processes_of_a_node_takes_one_gpu_on_jax(script):
    name = "JAX_LOCAL_DEVICE_IDS"
    environments = make_all(LaunchPlan(script, 2, "jax"), {})
    assert [environ[name] for environ in environments] == ["0", "1"]
    assert name not in make_all(LaunchPlan(script, 1, "jax"), {})[0]
    assert make_all(LaunchPlan(script, 2, "jax"), {name: "0,1"})[1][name] == "0,1"
    assert name not in make_all(LaunchPlan(script, 2, "torch"), {})[0]


def test_each_attempt_has_a_port_of_its_own(script):
    plan = LaunchPlan(script, 1, "torch")
    ports = {make_addresses(plan)[0][1] for _ in range(5)}
    assert len(ports) > 1


def test_each_job_has_a_secret_of_its_own(script):
    plan = LaunchPlan(script, 2, "jax")
    first, second = make_secret(plan, {}), make_secret(plan, {})
    assert len(first[SECRET_VARIABLE]) == 64
    assert first != second
    assert make_all(plan, first)[1][SECRET_VARIABLE] == first[SECRET_VARIABLE]


def test_a_secret_of_the_user_is_kept_and_none_is_made_for_one_of_several_nodes(script):
    assert make_secret(LaunchPlan(script, 2, "jax"), {SECRET_VARIABLE: "mine"}) == {}
    nodes = LaunchPlan(script, 2, "jax", nnodes=2, node_rank=1, coordinator="10.0.0.1:29500")
    assert make_secret(nodes, {}) == {}


def test_an_empty_secret_is_an_error(script):
    with pytest.raises(InvalidInputError, match=f"{SECRET_VARIABLE} is empty"):
        make_secret(LaunchPlan(script, 2, "jax"), {SECRET_VARIABLE: ""})
