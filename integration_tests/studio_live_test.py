"""Studio beside a real training, in a real browser: killed, resumed, profiled and stopped.

Not part of a plain `tox`: `tox -e studio` runs it on each backend, named by `KERAS_BACKEND`. What
the page and the run record hold is compared with what a callback of the training itself wrote.
"""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from integration_tests.studio_pages import expect
from keras_deepseek.artifacts import RunRecord
from keras_deepseek.studio import Studio

BACKEND = os.environ.get("KERAS_BACKEND", "torch")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(BACKEND) is None, reason=f"{BACKEND} is not installed"
)

TRAINING = """
import json, sys, time

import keras
import numpy as np

from keras_deepseek.layers import SwiGLU
from keras_deepseek.studio import launch_studio
from keras_deepseek.training import Trainer


class Witness(keras.callbacks.Callback):
    # Writes each step by its own count, independently of Studio.

    def on_epoch_begin(self, epoch, logs=None):
        self.before = epoch * self.params["steps"]

    def on_train_batch_end(self, batch, logs):
        line = json.dumps([self.before + batch + 1, float(logs["loss"])])
        print(line, file=log, flush=True)
        time.sleep(0.01)


keras.utils.set_random_seed(0)
layers = keras.layers
tokens = keras.Input((16,), dtype="int32")
hidden = layers.Embedding(100, 32, name="table")(tokens)
for n in range(2):
    normed = layers.LayerNormalization(name=f"attention_norm_{n}")(hidden)
    hidden = hidden + layers.MultiHeadAttention(4, 8, name=f"attention_{n}")(normed, normed)
    normed = layers.RMSNormalization(name=f"feedforward_norm_{n}")(hidden)
    hidden = hidden + SwiGLU(64, name=f"feedforward_{n}")(normed)
model = keras.Model(tokens, layers.Dense(100, name="head")(hidden), name="language_model")
trainer = Trainer(
    model,
    optimizer="adam",
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    checkpoint_dir="checkpoints",
    checkpoint_every=40,
    layer_statistics=True,
    seed=1,
)
studio = launch_studio(trainer=trainer, port=0, path="runs/live.sqlite")
x = np.random.default_rng(0).integers(0, 100, (16 * 50, 16))
with open("witness.jsonl", "a") as log:
    trainer.fit(
        x, x, batch_size=16, epochs=100_000, verbose=0, callbacks=[Witness()], resume=True
    )
print("fit has ended", flush=True)
"""


class Training:
    """A training in a process of its own, and the page that it serves."""

    def __init__(self, folder: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAINING],
            cwd=folder,
            env={**os.environ, "KERAS_BACKEND": BACKEND},
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        assert line.startswith("Studio: http://127.0.0.1:"), line
        self.url = line.split()[1]

    def server(self) -> int:
        """Returns the number of the process that serves its page."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            words = (path.parent / "cmdline").read_bytes().split(b"\0")
            if parent == self.process.pid and b"keras_deepseek.studio" in words:
                return int(path.parent.name)
        raise AssertionError("The training has no server.")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def train(tmp_path):
    """Returns a function that starts the training, or goes on with it."""
    trainings = []

    def train():
        trainings.append(Training(tmp_path))
        return trainings[-1]

    yield train
    for training in trainings:
        training.end()


def shown(page, name="step_loss"):
    """Returns the points of a name that the page holds, as `(steps, values)`."""
    code = """async (name) => {
        const {live} = await import("./live.js"), points = live.series[`live\\n${name}`];
        return points ? [points.x, points.y] : [[], []];
    }"""
    return page.evaluate(code, name)


def zoomed(page):
    return page.evaluate("import('./live.js').then(({live}) => live.want.window)")


def wait_for_points(page, least):
    """Waits until the page has points up to a step, each step once."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        steps, _ = shown(page)
        first = steps[0] if steps else 1
        assert steps == list(range(first, first + len(steps)))
        if first == 1 and len(steps) >= least:  # Otherwise it has those of the zoom.
            return len(steps)
        page.wait_for_timeout(100)
    raise AssertionError(f"The page has {len(steps)} points, not {least}.")


def witnessed(folder):
    """Returns the mean loss since the epoch began by step, and how often a step was made."""
    losses, counts = {}, {}
    for line in (folder / "witness.jsonl").read_text().splitlines():
        step, loss = json.loads(line)
        if step in losses:  # It is made again as it was made before.
            assert loss == pytest.approx(losses[step], rel=1e-5)
        losses[step], counts[step] = loss, counts.get(step, 0) + 1
    return losses, counts


def test_no_point_is_lost_or_doubled_whatever_is_killed(tmp_path, train, open_page):
    training = train()
    page = open_page(training.url)
    count = wait_for_points(page, 30)

    # Points arrive, and the zoom stays.
    box = page.locator(".u-over").first.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 50, steps=4)
    page.mouse.up()
    expect(page, "Show all")
    window = zoomed(page)
    text = page.locator(".state").inner_text()
    page.wait_for_function("text => document.querySelector('.state').innerText !== text", arg=text)
    assert zoomed(page) == window
    assert window[0] < window[1] < count
    page.get_by_text("Show all").click()
    count = wait_for_points(page, count + 5)

    # The server is killed: the picture stays, grey, and comes back with a new server.
    os.kill(training.server(), signal.SIGKILL)
    expect(page, "Reconnecting")
    assert page.locator(".u-over").count() > 0
    assert "grayscale" in page.locator("main").evaluate("each => getComputedStyle(each).filter")
    page.get_by_text("Reconnecting").wait_for(state="detached")
    assert page.locator("main").evaluate("each => getComputedStyle(each).filter") == "none"
    count = wait_for_points(page, count + 5)

    with Studio(tmp_path / "runs", port=0) as studio:
        # The training is killed: its own page is lost, and another says that it died.
        other = open_page(studio.url)
        wait_for_points(other, count)
        training.end()
        expect(page, "Reconnecting")
        expect(other, "died without a word after step")
        assert "died" in other.locator(".state").inner_text()
        died_at = wait_for_points(other, count)

        # It goes on from its checkpoint in the same record.
        training = train()
        count = wait_for_points(other, died_at + 20)
        other.get_by_text("died without a word").wait_for(state="detached")
        _, counts = witnessed(tmp_path)
        assert max(counts.values()) == 2  # Some steps were made again.

        open_a_nested_layer(other)
        take_a_profile(other)
        checkpoint_and_stop(other, training)
        compare(other, tmp_path)


def open_a_nested_layer(page):
    """Opens an attention layer down to its operations."""
    page.keyboard.press("2")
    expect(page, "parameters in")
    row = page.locator("[role=treegrid] tbody tr:has-text('feedforward_1')").first
    row.dblclick()
    page.wait_for_selector("tr[aria-expanded=true]:has-text('feedforward_1')")
    assert page.locator("[role=treegrid] tr[aria-level='3']").count() >= 2
    page.wait_for_selector("svg .box.open:has-text('feedforward_1') .box.op")
    inner = page.locator("[role=treegrid] tr[aria-level='3']").last
    inner.dblclick()
    page.wait_for_selector("svg .box.open .box.open .box.op")


def take_a_profile(page):
    page.keyboard.press("3")
    page.get_by_role("button", name="Profile five steps").click()
    expect(page, "profiled 5 steps", 120)
    for text in ("A step takes", "By kind of layer", "ui.perfetto.dev"):
        expect(page, text)
    page.keyboard.press("2")
    expect(page, "of the step")


def checkpoint_and_stop(page, training):
    """Asks for both on the page, and waits for the end of the process."""
    page.keyboard.press("1")
    page.get_by_role("button", name="Checkpoint").click()
    expect(page, "takes a checkpoint after step")
    page.get_by_role("button", name="Stop").click()
    page.locator(".state:has-text('stopped')").wait_for(timeout=60_000)
    assert training.process.stdout.read() == "fit has ended\n"
    assert training.process.wait(60) == 0


def compare(page, folder):
    """Compares the record and the page with what the training itself wrote."""
    losses, _ = witnessed(folder)
    steps = sorted(losses)
    assert steps == list(range(1, len(steps) + 1))
    with RunRecord(folder / "runs" / "live.sqlite", read_only=True) as record:
        assert record.properties()["state"] == "stopped"
        assert record.document("profile")["layers"]["head"] > [0, 0]
        names = [command.name for command in record.commands()]
        assert names == ["profile", "checkpoint", "stop"]
        assert record.commands(unanswered=True) == []
        means, step_losses = record.scalars("loss"), record.scalars("step_loss")
        for name in ("step_loss", "learning_rate", "gradient_norm"):
            assert [step for step, _ in record.scalars(name)] == steps, name
        for name in record.vector_names():
            assert [step for step, _ in record.vectors(name)] == steps, name
    assert (folder / "checkpoints" / f"step_{steps[-1]:010}.checkpoint").exists()
    assert [step for step, _ in means] == steps
    assert dict(means) == pytest.approx(losses, rel=1e-5)
    for step, loss in step_losses:  # The mean is that of the batches since the epoch began.
        done = (step - 1) % 50
        expected = losses[step] * (done + 1) - (losses[step - 1] * done if done else 0)
        assert loss == pytest.approx(expected, rel=1e-3), step
    wait_for_points(page, len(steps))
    x, y = shown(page)
    assert x == steps
    assert y == pytest.approx([loss for _, loss in step_losses], rel=1e-4)
    assert all(map(math.isfinite, y))
