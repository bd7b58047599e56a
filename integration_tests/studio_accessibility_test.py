"""axe-core finds nothing to complain about, whatever Studio shows.

Not part of a plain `tox`: `tox -e studio`, which installs the package that brings axe-core.
"""

import importlib.util
from pathlib import Path

import pytest

from integration_tests.studio_pages import SCHEMES, expect, studio_of_runs
from keras_deepseek.studio import Studio
from tests.oracles.run_records import invent

PACKAGE = "axe_playwright_python"

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed"
    ),
    pytest.mark.parametrize("scheme", SCHEMES),
]

OPENED = {
    "Training": ("Load of the experts",),
    "Model": ("block_1/experts",),
    "Performance": ("A step takes", "By kind of layer", "answers the most rows"),
    "Runs": ("All have ended.",),
}


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    faults = ("healthy", "failed", "diverging", "starved")
    with studio_of_runs(tmp_path_factory.mktemp("runs"), faults, 400) as studio:
        yield studio


def assert_clean(frame):
    """Asserts that axe-core finds nothing in a page or a frame."""
    script = Path(importlib.util.find_spec(PACKAGE).origin).with_name("axe.min.js")
    frame.evaluate(f"(() => {{ {script.read_text(encoding='utf-8')} }})()")
    violations = frame.evaluate("axe.run().then((result) => result.violations)")
    assert [(violation["id"], violation["nodes"][0]["html"]) for violation in violations] == []


def check_each_view(page, frame):
    for key, (view, texts) in enumerate(OPENED.items(), 1):
        page.keyboard.press(str(key))
        frame.wait_for_selector(f"[aria-selected=true]:text-is('{view}')")
        for text in texts:
            expect(frame, text)
        assert_clean(frame)


@pytest.mark.parametrize("width", [360, 1360])
def test_each_view(studio, open_page, scheme, width):
    page = open_page(f"{studio.url}&run=starved", (width, 900), scheme)
    expect(page, "Expert 3")
    check_each_view(page, page.main_frame)


def test_tables_keys_and_an_opened_layer(studio, open_page, scheme):
    page = open_page(f"{studio.url}&run=diverging", scheme=scheme)
    expect(page, "Load of the experts")
    for button in page.get_by_role("button", name="Table of").all():
        button.click()
    assert page.locator(".rows.data").count() > 8
    assert_clean(page)
    page.keyboard.press("?")
    page.locator("dialog[open]").wait_for()
    assert_clean(page)
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.locator("tr:has-text('block_1') .twig").first.wait_for()
    page.locator("tr:has-text('block_0') .twig").first.click()
    assert_clean(page)


def test_no_run_and_no_server(tmp_path, open_page, scheme):
    with Studio(tmp_path, port=0) as studio:
        page = open_page(studio.url, scheme=scheme)
        expect(page, "launch_studio(trainer=trainer)")
        assert_clean(page)
        invent(tmp_path / "run.sqlite", steps=100, begin=1e9)
        expect(page, "has ended at step 100")
    expect(page, "Reconnecting")
    assert_clean(page)


def test_the_report_as_a_file_and_in_a_sandbox(studio, tmp_path, open_page, scheme):
    report = tmp_path / "report.html"
    studio.snapshot(report)
    page = open_page(f"{report.as_uri()}#&run=starved", scheme=scheme)
    expect(page, "Expert 3")
    check_each_view(page, page.main_frame)
    text = report.read_text(encoding="utf-8").replace("&", "&amp;").replace('"', "&quot;")
    (tmp_path / "frame.html").write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Notebook</title><body><main>'
        '<h1>Notebook</h1><iframe title="Studio" sandbox="allow-scripts" width="1200" height="800"'
        f' srcdoc="{text}"></iframe></main></body></html>',
        encoding="utf-8",
    )
    page = open_page((tmp_path / "frame.html").as_uri(), scheme=scheme)
    frame = page.frames[1]
    frame.get_by_role("tab", name="Training").click()
    check_each_view(page, frame)
