"""Studio in a real browser: keys, sentences, a lost server, a report, names with markup.

Not part of a plain `tox`: `tox -e studio`, with Chromium by `playwright install chromium`, or at
the path that the variable `CHROMIUM` names.
"""

import math
import time

import pytest

from integration_tests.studio_pages import expect
from keras_deepseek.artifacts import RunRecord
from keras_deepseek.studio import Studio
from tests.oracles.run_records import (
    FAULTS,
    InventedRun,
    invent,
    language_model,
    write_documents,
)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    now = time.time()
    for index, fault in enumerate(FAULTS):
        path = folder / f"{fault}.sqlite"
        invent(path, fault, steps=800, seed=index, begin=now - 9000 + 300 * index)
    with Studio(folder, port=0) as studio:
        yield studio


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
            while not (commands := record.commands(unanswered=True)):
                page.wait_for_timeout(50)
            assert commands[0].name == "stop"
            record.answer(commands[0].id, "It stops after this step.")
        expect(page, "It stops after this step.")
        run.describe(state="stopped")
        expect(page, "was stopped at step 399")
        write_documents(run)
        page.keyboard.press("2")
        expect(page, "1.57 M parameters")


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
