"""Studio in a real browser: each view, while a training runs, after it died, and as a report.

Not part of a plain `tox`: `tox -e studio`, with Chromium by `playwright install chromium`, or at
the path that the variable `CHROMIUM` names. `STUDIO_PICTURES=FOLDER` keeps a picture of each view.
"""

import importlib.util
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_deepseek.artifacts import RunRecord
from keras_deepseek.studio import Studio
from tests.oracles.run_records import (
    FAULTS,
    InventedRun,
    invent,
    language_model,
    write_documents,
)

VIEWS = ("Training", "Model", "Performance", "Runs")
SIZES = ((360, 780), (1360, 900), (2560, 1400))
SCHEMES = ("light", "dark")


@pytest.fixture
def open_page(browser):
    """Returns a function that opens a page, which must log no error and ask no other host."""
    problems, contexts = [], []

    def open_page(url, size=(1360, 900), scheme="light"):
        width, height = size
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: line.type == "error" and complain(line.text))
        page.on("request", lambda request: check(request.url))
        page.goto(url)
        return page

    def complain(text):
        if "net::ERR_" not in text and "status of 403" not in text:  # A stopped server.
            problems.append(text)

    def check(address):
        if not address.startswith(("http://127.0.0.1:", "data:", "blob:", "file:")):
            problems.append(f"asked {address}")

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    now = time.time()
    for index, fault in enumerate(FAULTS):
        path = folder / f"{fault}.sqlite"
        invent(path, fault, steps=800, seed=index, begin=now - 9000 + 300 * index)
    with Studio(folder, port=0) as studio:
        yield studio


def expect(page, text):
    page.get_by_text(text).first.wait_for(timeout=20_000)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_view_fits_each_screen(studio, open_page, size, scheme):
    page = open_page(f"{studio.url}&run=starved", size, scheme)
    expect(page, "Expert 3 of block_1/experts")
    for key, view in enumerate(VIEWS, 1):
        page.keyboard.press(str(key))
        page.wait_for_selector(f"[aria-selected=true]:text-is('{view}')")
        page.get_by_text("Reading the").wait_for(state="detached")
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        if folder := os.environ.get("STUDIO_PICTURES"):
            name = f"studio_{view.lower()}_{size[0]}_{scheme}.png"
            page.screenshot(path=Path(folder) / name)


def test_a_sentence_says_what_is_wrong(studio, open_page):
    page = open_page(f"{studio.url}&run=killed")
    expect(page, "died without a word after step 800")
    page.keyboard.press("[")
    expect(page, "Waiting for data takes 42 % of a step.")


def test_the_optimized_graph_stands_beside_the_one_as_built(tmp_path, open_page):
    run = invent(tmp_path / "run.sqlite", steps=50)
    optimized = language_model()
    optimized["flops"] //= 2
    run.write("model_graph_optimized", optimized)
    with Studio(tmp_path, port=0) as studio:
        page = open_page(f"{studio.url}&view=Model")
        expect(page, "50 % of the operations")
        page.get_by_label("beside the optimized step").check()
        page.get_by_label("Find a layer").fill("head")
        page.wait_for_function("document.querySelectorAll('g.selected').length == 2")


def test_points_arrive_and_the_zoom_stays(tmp_path, open_page):
    run = InventedRun(tmp_path / "run.sqlite")
    run.describe(state="running", heartbeat=time.time(), started=time.time(), host="elsewhere")

    def log(first, last):
        steps = range(first, last)
        values = [math.exp(-step / 100) for step in steps]
        run.log("step_loss", steps, values, [time.time()] * len(steps))
        run.describe(heartbeat=time.time())

    log(1, 200)
    with Studio(tmp_path, port=0) as studio:
        page = open_page(studio.url)
        expect(page, "at step 199")
        box = page.locator(".u-over").first.bounding_box()
        page.mouse.move(box["x"] + 300, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + 600, box["y"] + 50, steps=4)
        page.mouse.up()
        expect(page, "Show all")
        log(200, 400)
        expect(page, "at step 399")
        assert page.get_by_text("Show all").count() == 1
        page.get_by_role("button", name="Stop").click()
        with RunRecord(run.path) as record:
            while not (asked := record.commands(unanswered=True)):
                page.wait_for_timeout(50)
            assert asked[0].name == "stop"
            record.answer(asked[0].id, "It stops after this step.")
        expect(page, "It stops after this step.")
        run.describe(state="stopped")
        expect(page, "was stopped at step 399")
        write_documents(run)
        page.keyboard.press("2")
        expect(page, "1.57 M parameters")


TRAINING = """
import sys

import keras
import numpy as np

from keras_deepseek.layers import SwiGLU
from keras_deepseek.training import Trainer

layers = keras.layers
tokens = keras.Input((64,), dtype="int32")
hidden = layers.Embedding(2000, 128, name="table")(tokens)
for n in range(2):
    normed = layers.LayerNormalization(name=f"attention_norm_{n}")(hidden)
    hidden = hidden + layers.MultiHeadAttention(4, 32, name=f"attention_{n}")(normed, normed)
    normed = layers.RMSNormalization(name=f"feedforward_norm_{n}")(hidden)
    hidden = hidden + SwiGLU(512, name=f"feedforward_{n}")(normed)
model = keras.Model(tokens, layers.Dense(2000, name="head")(hidden), name="language_model")
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
trainer = Trainer(model, optimizer="adam", loss=loss, run_record=sys.argv[1])
x = np.random.default_rng(0).integers(0, 2000, (160, 64))
trainer.fit(x, x, batch_size=16, epochs=100_000, verbose=0)
"""


def test_the_page_takes_a_profile_of_a_training(tmp_path, open_page):
    backend = os.environ.get("KERAS_BACKEND", "torch")
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed.")
    command = [sys.executable, "-c", TRAINING, "runs/language_model.sqlite"]
    child = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "KERAS_BACKEND": backend})
    runs = tmp_path / "runs"
    runs.mkdir()
    try:
        with Studio(runs, port=0) as studio:
            page = open_page(f"{studio.url}&view=Performance")
            page.get_by_text("The last step took").wait_for(timeout=120_000)
            page.get_by_role("button", name="Profile five steps").click()
            page.get_by_text("profiled 5 steps").wait_for(timeout=120_000)
            for text in ("A step takes", "head takes", "By kind of layer", "ui.perfetto.dev"):
                expect(page, text)
            page.keyboard.press("2")
            expect(page, "of the step")
            for scheme in SCHEMES if "STUDIO_PICTURES" in os.environ else ():
                taken = open_page(f"{studio.url}&view=Performance", (1360, 690), scheme)
                expect(taken, "By kind of layer")
                folder = Path(os.environ["STUDIO_PICTURES"])
                taken.screenshot(path=folder / f"studio_profile_{backend}_{scheme}.png")
            page.get_by_role("button", name="Stop").click()
            assert child.wait(timeout=120) == 0
            expect(page, "stopped")
        with RunRecord(runs / "language_model.sqlite", read_only=True) as record:
            assert record.properties()["state"] == "stopped"
            steps = [step for step, _ in record.scalars("step_loss")]
            assert steps == list(range(1, len(steps) + 1))
            assert record.document("profile")["layers"]["head"] > [0, 0]
    finally:
        child.kill()
        child.wait()


def test_a_nested_layer_opens_by_keyboard_and_is_found(studio, open_page):
    page = open_page(f"{studio.url}&view=Model&run=healthy")
    rows = page.locator("[role=treegrid] tbody tr")
    rows.first.wait_for()
    count = rows.count()
    rows.first.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    page.wait_for_selector("tr[aria-selected=true][aria-expanded=true]")
    assert rows.count() > count
    page.keyboard.press("/")
    page.keyboard.type("block_3/attention/key")
    page.wait_for_selector("tr[aria-selected=true]:has-text('key')")
    assert page.locator("svg .box.selected").count() == 1


def test_a_lost_server_leaves_the_picture(tmp_path, open_page):
    invent(tmp_path / "run.sqlite", steps=100, begin=1e9)
    studio = Studio(tmp_path, port=0)
    page = open_page(studio.url)
    expect(page, "has ended at step 100")
    page.locator(".u-over").first.wait_for()
    port = int(studio.url.split("/#")[0].rpartition(":")[2])
    studio.stop()
    expect(page, "Reconnecting")
    assert page.locator(".u-over").count() > 0
    with Studio(tmp_path, port=port):  # Another secret: the page says so.
        expect(page, "Open the address that Studio printed")


def test_an_empty_folder_shows_the_line_that_starts_a_run(tmp_path, open_page):
    with Studio(tmp_path, port=0) as studio:
        page = open_page(studio.url)
        expect(page, "launch_studio(trainer=trainer)")
        invent(tmp_path / "run.sqlite", steps=50, begin=1e9)
        expect(page, "has ended at step 50")


def test_the_report_is_the_page_without_a_server(studio, open_page, tmp_path):
    report = tmp_path / "report.html"
    studio.snapshot(report)
    page = open_page(report.as_uri())
    expect(page, "The run failed after step 800")
    for key, text in ((2, "1.57 M parameters"), (3, "A step takes"), (4, "is ahead")):
        page.keyboard.press(str(key))
        expect(page, text)
    frame = tmp_path / "frame.html"
    text = report.read_text(encoding="utf-8").replace("&", "&amp;").replace('"', "&quot;")
    element = f'<iframe sandbox="allow-scripts" srcdoc="{text}" width="1200"></iframe>'
    frame.write_text(f'<meta charset="utf-8">{element}', encoding="utf-8")
    page = open_page(frame.as_uri())
    page.frame_locator("iframe").get_by_text("The run failed after step 800").first.wait_for()


def test_markup_in_names_stays_text(tmp_path, open_page):
    run = InventedRun(tmp_path / "<img src=x onerror=alert(1)>.sqlite")
    run.log("<b>loss</b>", [1, 2], [1.0, 0.5], [1.0, 2.0])
    with Studio(tmp_path, port=0) as studio:
        page = open_page(studio.url)
        expect(page, "<b>loss</b>")
        assert page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing(studio, open_page, scheme):
    script = os.environ.get("AXE")
    if script is None:
        pytest.skip("AXE names no axe.min.js (npm pack axe-core).")
    page = open_page(f"{studio.url}&run=starved", scheme=scheme)
    expect(page, "Expert 3")
    text = Path(script).read_text(encoding="utf-8")
    for key in range(1, 5):
        page.keyboard.press(str(key))
        page.wait_for_timeout(500)
        page.evaluate(f"(() => {{ {text} }})()")
        found = page.evaluate("axe.run().then((result) => result.violations)")
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
