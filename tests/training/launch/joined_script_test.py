"""Scripts as `python script.py` runs them, which is the reference, and as joined ranks do."""

import signal
import subprocess
import sys

import keras
import pytest

from keras_deepseek.training.launch import joined_script

PROGRAM = (joined_script.__file__, "torch", "run")
HEAD = """
import argparse, dataclasses, multiprocessing, os, pickle, sys
os.environ["KERAS_BACKEND"] = "torch"
import keras
assert type(keras.__spec__.loader) is type(keras.__loader__) is type(argparse.__loader__)

@dataclasses.dataclass
class Point:
    x: int

def double(point):
    return Point(2 * point.x)
"""
PLACE = """
main = sys.modules["__main__"]
print(sys.argv, sys.path[0], __file__, main.__file__, __name__, __spec__, __package__, __doc__)
print(pickle.loads(pickle.dumps(Point(3))), main.Point is Point, Point.__module__)
"""
SPAWNS = """
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(double, [Point(1), Point(2)]))
"""
FAILS = """
def fail():
    raise ValueError("a reason")
try:
    fail()
except ValueError as error:
    raise KeyError("another") from error
"""
OWN_HOOK = """
sys.excepthook = lambda kind, value, traceback: print(kind, traceback.tb_frame.f_code.co_name)
1 / 0
"""
HELPS = "argparse.ArgumentParser(description='A training.').parse_args(['--help'])"
TRAINS = """
import sys
from keras_deepseek.training import Trainer
import keras
import numpy as np

x = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")

def build():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dropout(0.2), keras.layers.Dense(1)])

trainer = Trainer(build, optimizer=keras.optimizers.Adam(1e-2), loss="mse", seed=1, OPTION)
loss = trainer.fit(x, x[:, :1], batch_size=8, verbose=0).history["loss"]
weights = sum(float(abs(weight).sum()) for weight in trainer.model.get_weights())
print(trainer.cluster.strategy, trainer.cluster.world_size, loss, weights, flush=True)
"""


@pytest.fixture
def run(tmp_path):
    """Returns a function that runs a script, beside a stand-in for Keras."""
    (tmp_path / "keras.py").touch()

    def run(text, *program):
        (tmp_path / "script.py").write_text(HEAD + text)
        command = [sys.executable, *program, "./script.py", "--epochs", "3"]
        return subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (PLACE, 0),
        (SPAWNS, 0),
        (FAILS, 1),
        (OWN_HOOK, 1),
        (HELPS, 0),
        ("sys.exit(3)", 3),
        ("sys.exit('some words')", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import signal; signal.raise_signal(signal.SIGTERM)", -signal.SIGTERM),
    ],
)
def test_a_script_runs_as_python_runs_it(run, text, code):
    direct, joined = run(text), run(text, *PROGRAM)
    assert (direct.returncode, joined.returncode) == (code, code)
    assert (joined.stdout, joined.stderr) == (direct.stdout, direct.stderr)


def test_a_setting_that_comes_too_late_is_explained(run):
    text = "raise RuntimeError('Physical devices cannot be modified after being initialized')"
    assert run(text, *PROGRAM).stderr.endswith("of a file that calls it.\n")


@pytest.mark.parametrize(
    "option",
    [
        "checkpoint_dir=sys.argv[1]",
        pytest.param("distributed_strategy='allreduce'", marks=pytest.mark.nightly),
    ],
)
def test_all_ranks_train_together_without_join_cluster(launch, tmp_path, option):
    text = TRAINS.strip().replace("OPTION", option)
    code, out, error = launch(text, "--nproc", "2", arguments=(str(tmp_path / "saved"),)).finish()
    assert code == 0, error
    first, second = (line for line in sorted(out.splitlines()) if "] allreduce 2 [" in line)
    assert first[3:] == second[3:]


@pytest.mark.nightly
def test_a_rank_that_fails_ends_the_others_at_once(launch):
    text = """
    import keras
    print("ready", flush=True)
    if rank == 1:
        sys.exit(3)
    while True:
        signal.pause()
    """
    code, out, error = launch(text, "--nproc", "2", "--grace-period", "3600").finish()
    assert (code, sorted(out.splitlines())) == (3, ["[0] ready", "[1] ready"])
    assert "rank 1 ended with exit code 3" in error


OWN_JOINING = {
    "jax": """
    import keras, jax
    address = os.environ["MASTER_ADDR"] + ":" + os.environ["MASTER_PORT"]
    jax.distributed.initialize(address, 2, rank)
    print(jax.process_count())
    """,
    "tensorflow": """
    import keras
    import tensorflow as tf
    print(tf.distribute.MultiWorkerMirroredStrategy().num_replicas_in_sync)
    """,
    "torch": """
    import keras, torch.distributed
    torch.distributed.init_process_group("gloo")
    print(torch.distributed.get_world_size())
    torch.distributed.destroy_process_group()
    """,
}


@pytest.mark.nightly
def test_a_script_that_joins_by_itself_is_left_to_do_so(launch):
    text = OWN_JOINING[keras.backend.backend()]
    code, out, error = launch(text, "--nproc", "2").finish()
    assert (code, sorted(out.splitlines())) == (0, ["[0] 2", "[1] 2"]), error
