"""A training by several processes, of which one after the other is killed, stalled or cut off.

They are started again, from the last checkpoint. It ends as one that was left alone, each rank with
the same weights, and leaves nothing running.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from shaped_links import Host, shaped_links

KILLS = int(os.environ.get("CHAOS_KILLS", "8"))
SEED = int(os.environ.get("CHAOS_SEED", "7"))
SHORT_CUTS, LONG_CUTS = -(-KILLS // 4), -(-KILLS // 3)
CUT_TIMEOUT = 20
"""Seconds after which who is cut off is given up."""
STALLS = KILLS // 2
SECONDS_OF_A_STEP = 0.05
NUM_PROCESSES = 3
EPOCHS = 5 * KILLS  # Of ten steps: the training is not to end before the last of them.
SECONDS = 900 + 120 * KILLS
"""After this long a training that hangs is ended, so that the run ends too."""

TRAINING = """
import hashlib, json, os, sys
import keras
import numpy as np
from pathlib import Path
from keras_deepseek.callbacks import LRScheduler
from keras_deepseek.training import Trainer, join_cluster

folder = Path(sys.argv[1])
cluster = join_cluster()
(folder / f"rank_{cluster.rank}.pid").write_text(str(os.getpid()))
images = np.random.default_rng(0).random((200, 8, 8, 1), "float32")
labels = (images.mean(axis=(1, 2, 3)) > 0.5).astype("int32")


class Count(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        with (folder / f"rank_{cluster.rank}.steps").open("a") as file:
            file.write("step\\n")


def build():
    return keras.Sequential([
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(4, 3, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(16, activation="relu"),
        keras.layers.Dense(2),
    ])


def schedule(step, total_steps, initial_lr, final_lr):
    return final_lr * (1 - step / total_steps)


trainer = Trainer(
    build,
    optimizer=keras.optimizers.AdamW(use_ema=True, ema_momentum=0.9),
    distributed_strategy="allreduce",
    shard_optimizer="SHARDS" in os.environ,
    micro_batches=2,
    gradient_clip=("global_norm", 1.0),
    guard="skip",
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    checkpoint_dir=folder / "checkpoints",
    checkpoint_every=3,
    keep_best=("val_loss", "min", 2),
    seed=2026,
    callbacks=[LRScheduler(func=schedule, total_steps=EPOCHS * 10, final_lr=0.01), Count()],
)
history = trainer.fit(
    images, labels, batch_size=16, epochs=EPOCHS, validation_split=0.2, verbose=0, resume=True
).history
digest = hashlib.sha256(json.dumps(history).encode())
state = [] if "SHARDS" in os.environ else trainer.model.optimizer.variables  # A rank has its own.
for variable in trainer.model.variables + state:
    digest.update(keras.ops.convert_to_numpy(variable.value).tobytes())
(folder / f"rank_{cluster.rank}.digest").write_text(digest.hexdigest())
""".replace("EPOCHS", str(EPOCHS))


SHORT_TRAINING = """
import json, os, sys
import keras
import numpy as np
from pathlib import Path
from keras_deepseek.training import Trainer, join_cluster

folder, epochs = Path(sys.argv[1]), int(sys.argv[2])
cluster = join_cluster()
x = np.random.default_rng(0).normal(size=(53, 6)).astype("float32")


def build():  # After the seed was set, by which each run begins with the same weights.
    hidden = keras.layers.Dense(16, activation="relu")
    return keras.Sequential([keras.Input((6,)), hidden, keras.layers.Dense(2)])


trainer = Trainer(
    build,
    optimizer=keras.optimizers.AdamW(0.01, use_ema=True),
    distributed_strategy="allreduce",
    shard_optimizer="SHARDS" in os.environ,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    checkpoint_dir=folder / "checkpoints",
    seed=2026,
)
y = (x.sum(axis=1) > 0).astype("int32")
losses = trainer.fit(x, y, batch_size=16, epochs=epochs, verbose=0, resume=True).history["loss"]
weights = np.concatenate([weight.ravel() for weight in trainer.model.get_weights()])
(folder / f"rank_{cluster.rank}.json").write_text(json.dumps([*losses, *weights.tolist()]))
"""


def read_digests(folder: Path) -> set[str]:
    return {(folder / f"rank_{rank}.digest").read_text() for rank in range(NUM_PROCESSES)}


def launch(launcher: Path, folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    script = folder / "train.py"
    script.write_text(TRAINING)
    # On a busy machine one may be given up that has only been slow: that costs a restart as well.
    counts = ["--nproc", str(NUM_PROCESSES), "--max-restarts", str(2 * KILLS)]
    with (folder / "log").open("a") as log:  # The launcher has it for itself.
        return subprocess.Popen(
            [str(launcher), "launch", *counts, "--grace-period", "5", str(script), str(folder)],
            env={**environment, "KERAS_DEEPSEEK_PEER_TIMEOUT": "60"},
            stdout=log,
            stderr=log,
            text=True,
        )


def count_steps(folder: Path) -> int:
    steps = folder / "rank_0.steps"
    return len(steps.read_text().splitlines()) if steps.exists() else 0


def harass(folder: Path, process: subprocess.Popen[str], chance: random.Random) -> int:
    """Kills and stalls ranks while they train; returns how many were killed."""
    kills = 0
    actions = [signal.SIGKILL] * KILLS + [signal.SIGSTOP] * STALLS
    chance.shuffle(actions)
    for action in actions:
        target = count_steps(folder) + chance.randint(2, 12)
        while count_steps(folder) < target and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        pid = int((folder / f"rank_{chance.randrange(NUM_PROCESSES)}.pid").read_text())
        time.sleep(chance.random() * SECONDS_OF_A_STEP)  # Somewhere in a step, or in a checkpoint.
        os.kill(pid, action)
        if action == signal.SIGSTOP:
            time.sleep(chance.random())
            os.kill(pid, signal.SIGCONT)
        kills += action == signal.SIGKILL
    return kills


def harass_and_compare(launcher: Path, environment: dict[str, str], folder: Path) -> None:
    """Asserts that a training whose ranks are killed ends as one that is left alone."""
    alone, harassed = folder / "left_alone", folder / "harassed"
    process = launch(launcher, alone, environment)
    assert process.wait(SECONDS) == 0, (alone / "log").read_text()
    process = launch(launcher, harassed, environment)
    kills = harass(harassed, process, random.Random(SEED))
    code = process.wait(SECONDS)
    assert code == 0, (harassed / "log").read_text()
    assert kills == KILLS
    assert read_digests(harassed) == read_digests(alone)
    assert len(read_digests(alone)) == 1
    assert count_steps(harassed) > count_steps(alone)  # Some steps were made again.
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(folder) not in listed.stdout


def start_nodes(
    hosts: list[Host], launcher: Path, folder: Path, environment: dict[str, str]
) -> list[subprocess.Popen[str]]:
    """Starts a rank on each host, as on machines of their own that share a folder."""
    folder.mkdir(exist_ok=True)
    script = folder / "train.py"
    script.write_text(TRAINING)
    options = ["--nproc", "1", "--nnodes", str(len(hosts)), "--grace-period", "5"]
    options += ["--coordinator", f"{hosts[0].address}:29500"]
    nodes = []
    for rank, host in enumerate(hosts):
        arguments = [*options, "--rank", str(rank), str(script), str(folder)]
        with (folder / "log").open("a") as log:
            nodes.append(
                subprocess.Popen(
                    host.command(str(launcher), "launch", *arguments),
                    env={**environment, "KERAS_DEEPSEEK_PEER_TIMEOUT": str(CUT_TIMEOUT)},
                    stdout=log,
                    stderr=log,
                    text=True,
                )
            )
    return nodes


def cut_and_compare(
    hosts: list[Host], launcher: Path, environment: dict[str, str], folder: Path
) -> None:
    """Asserts that a training whose links are cut ends as one that is left alone."""
    alone, cut = folder / "left_alone", folder / "cut"
    chance = random.Random(SEED + 4)
    lengths = [0.5] * SHORT_CUTS + [None] * LONG_CUTS
    chance.shuffle(lengths)
    with contextlib.ExitStack() as stack:
        nodes = start_nodes(hosts, launcher, alone, environment)
        stack.callback(lambda: [node.kill() for node in nodes])
        assert [node.wait(SECONDS) for node in nodes] == [0] * len(hosts), read_log(alone)
        nodes = start_nodes(hosts, launcher, cut, environment)
        for length in lengths:
            target = count_steps(cut) + chance.randint(5, 30)
            while count_steps(cut) < target:
                assert all(node.poll() is None for node in nodes), read_log(cut)
                time.sleep(0.01)
            host = chance.choice(hosts)
            host.cut()
            if length is not None:  # They wait for each other, and go on.
                time.sleep(length)
                host.cut(is_cut=False)
                continue
            # Those on either side give up, and none waits for ever.
            assert all(node.wait(5 * CUT_TIMEOUT) for node in nodes), read_log(cut)
            host.cut(is_cut=False)
            nodes = start_nodes(hosts, launcher, cut, environment)
        assert [node.wait(SECONDS) for node in nodes] == [0] * len(hosts), read_log(cut)
    assert read_digests(cut) == read_digests(alone)
    assert len(read_digests(alone)) == 1
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(folder) not in listed.stdout


def read_log(folder: Path) -> str:
    return (folder / "log").read_text()[-10_000:]


@pytest.fixture
def hosts():
    """Hosts in namespaces of their own, on one switch."""
    with contextlib.ExitStack() as stack:
        try:
            namespaces = stack.enter_context(shaped_links(NUM_PROCESSES, None))
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("Network namespaces need Linux and root.")
        yield namespaces


BACKENDS = pytest.mark.parametrize(
    ("backend", "extras"),
    [("tensorflow", "onnx,serving,tensorflow"), ("jax", "jax"), ("torch", "torch")],
)


STATES = pytest.mark.parametrize(
    "state", [{}, {"SHARDS": "1"}], ids=["whole state", "sharded state"]
)


@STATES
@BACKENDS
def test_ranks_that_are_killed_again_and_again(install, tmp_path, backend, extras, state):
    installed = install(extras)
    environment = {**installed.environment, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= state
    harass_and_compare(installed.programs / "keras-deepseek", environment, tmp_path)


@BACKENDS
def test_ranks_that_are_cut_off_again_and_again(install, tmp_path, hosts, backend, extras):
    installed = install(extras)
    environment = {**installed.environment, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    cut_and_compare(hosts, installed.programs / "keras-deepseek", environment, tmp_path)


@STATES
@BACKENDS
def test_a_training_goes_on_by_fewer_processes_and_by_more(
    install, tmp_path, backend, extras, state
):
    installed = install(extras)
    environment = {**installed.environment, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= state
    script = tmp_path / "train.py"
    script.write_text(SHORT_TRAINING)

    def train(folder: str, num_processes: int, epochs: int) -> list[float]:
        (tmp_path / folder).mkdir(exist_ok=True)
        launch = [installed.programs / "keras-deepseek", "launch", "--nproc", str(num_processes)]
        arguments = [script, tmp_path / folder, str(epochs)]
        subprocess.run([*launch, *arguments], env=environment, timeout=SECONDS, check=True)
        ranks = [tmp_path / folder / f"rank_{rank}.json" for rank in range(num_processes)]
        losses_by_rank = [json.loads(rank.read_text()) for rank in ranks]
        assert all(rank_losses == losses_by_rank[0] for rank_losses in losses_by_rank)
        return losses_by_rank[0]

    alone = train("alone", 1, 6)
    for num_processes, epochs in ((3, 2), (2, 4), (1, 5), (4, 6)):
        losses = train("together", num_processes, epochs)
    assert max(abs(a - b) for a, b in zip(alone, losses, strict=True)) < 1e-5
