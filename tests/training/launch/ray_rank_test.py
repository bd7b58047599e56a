"""Launches on a Ray cluster of this machine, as users start them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_deepseek.training.launch.plan import find_free_ports

pytest.importorskip("ray", reason="tox -e ray has it.")

ROOT = Path(__file__).parents[3]
WAITS = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
"""
TRAINS = """
import hashlib, keras, numpy as np
from keras_deepseek.training import Trainer
def build():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.2), keras.layers.Dense(1)])
trainer = Trainer(build, optimizer=keras.optimizers.Adam(), loss="mse", seed=1)
x = np.random.default_rng(0).normal(size=(10, 4)).astype("float32")
losses = trainer.fit(x, x[:, :1], batch_size=4, epochs=2, verbose=0).history["loss"]
weights = b"".join(weight.tobytes() for weight in trainer.model.get_weights())
digest = hashlib.sha256(weights).hexdigest()
print("ends with", trainer.cluster.world_size, digest, losses, flush=True)
"""


@contextlib.contextmanager
def node(*options):
    """Runs a node of Ray, with two processors."""
    program = Path(sys.executable).with_name("ray")
    with subprocess.Popen(
        [program, "start", "--block", "--num-cpus", "2", "--disable-usage-stats", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert any("runtime started" in line for line in iter(process.stdout.readline, ""))
        try:
            yield
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two nodes."""
    (port,) = find_free_ports(1)
    address = f"127.0.0.1:{port}"
    head = ("--head", "--node-ip-address", "127.0.0.1", "--port", str(port))
    with pytest.MonkeyPatch.context() as patch:
        # Newer releases ask for a token by default, and for all that this process starts once it
        # has had a cluster of its own. Here all is on loopback.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        with node(*head, "--include-dashboard", "false"), node("--address", address):
            yield address


def pids(launched, count):
    """Returns the numbers of the processes that the ranks have printed, a rank a list."""
    lines = launched.read_lines(count)
    process_ids = [[int(number) for number in re.findall(r"\d+", line)[1:]] for line in lines]
    launched.watch([pid for rank_ids in process_ids for pid in rank_ids])
    return process_ids


def test_each_rank_runs_the_script_with_its_place(launch, cluster, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    text = """
    places = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "KERAS_BACKEND")]
    assert os.environ["OMP_NUM_THREADS"] == "3"
    print(*places, os.environ["MASTER_PORT"], *sys.argv[1:], os.environ["RAY_RAYLET_PID"])
    """
    options = ("--nproc", "3", "--ray", cluster, "--backend", "torch")
    code, out, error = launch(text, *options, arguments=("--epochs", "3")).finish()
    assert (code, error) == (0, "")
    lines = [line.rpartition(" ") for line in sorted(out.splitlines())]
    (port,) = {line.split()[5] for line, *_ in lines}
    assert [line for line, *_ in lines] == [
        f"[{rank}] {rank} 3 0 torch {port} --epochs 3" for rank in range(3)
    ]
    assert len({raylet for *_, raylet in lines}) == 2


def test_where_a_rank_fails_all_begin_again(launch, cluster):
    text = """
    attempt = os.environ["KERAS_DEEPSEEK_RESTART"]
    print("attempt", attempt, flush=True)
    if rank == 1 and attempt == "0":
        sys.exit("no luck")
    if attempt == "0":
        signal.pause()
    """
    options = ("--nproc", "2", "--ray", cluster, "--max-restarts", "1")
    code, out, error = launch(text, *options).finish()
    assert code == 0
    assert sorted(out.splitlines()) == [
        f"[{rank}] attempt {attempt}" for rank in range(2) for attempt in range(2)
    ]
    assert "[1] no luck\n" in error
    assert "rank 1 ended with exit code 1. Its last lines on stderr:\n    no luck\n" in error
    assert "keras-deepseek launch: restart 1 of 1.\n" in error


def test_signals_reach_the_ranks(launch, cluster):
    text = """
    def end(number, frame):
        print("checkpoint after", signal.Signals(number).name, flush=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
    """
    launched = launch(text, "--nproc", "2", "--ray", cluster)
    assert launched.read_lines(2) == ["[0] ready", "[1] ready"]
    launched.process.send_signal(signal.SIGTERM)
    code, out, _ = launched.finish()
    assert code == 0
    assert sorted(out.splitlines()) == [f"[{rank}] checkpoint after SIGTERM" for rank in (0, 1)]


def test_a_launcher_that_is_killed_leaves_nothing_on_the_cluster(launch, cluster):
    launched = launch(f"{WAITS}\nsignal.pause()", "--nproc", "2", "--ray", cluster)
    pids(launched, 2)
    launched.process.kill()
    assert launched.all_have_ended()


def test_a_rank_whose_node_is_lost_ends_the_job(launch, cluster):
    launched = launch(f"{WAITS}\nsignal.pause()", "--nproc", "2", "--ray", cluster)
    first, _ = pids(launched, 2)
    launcher = read_parent(first[0])
    os.kill(read_parent(launcher), signal.SIGKILL)  # Ray's process, as if its node were gone.
    code, _, error = launched.finish()
    assert code != 0
    assert "Ray could not run this rank: The actor died unexpectedly" in error
    assert launched.all_have_ended()


def read_parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_more_ranks_than_the_cluster_can_run_are_refused(launch, cluster):
    code, _, error = launch("", "--nproc", "5", "--ray", cluster).finish()
    assert code == 1
    assert "5 ranks need a CPU of Ray each, and the cluster has 4" in error


def test_ranks_train_together(launch, cluster):
    options = ("--nproc", "2", "--ray", cluster, "--backend", keras.backend.backend())
    code, out, error = launch(TRAINS.strip(), *options).finish()
    assert code == 0, error
    first, second = sorted(line for line in out.splitlines() if "] ends with " in line)
    assert first.startswith("[0] ends with 2 ")
    assert first[3:] == second[3:]
