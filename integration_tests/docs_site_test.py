"""The documentation site in a real browser: each kind of page, and the search.

Not part of a plain `tox`: `tox -e docs-browser`, with Chromium by `playwright install chromium`, or
at the path that the variable `CHROMIUM` names. `AXE=axe.min.js` checks accessibility, and
`DOCS_PICTURES=FOLDER` keeps a picture of each page.
"""

import functools
import os
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

PAGES = {
    "home": "index.html",
    "guide": "guides/01_quickstart.html",
    "how_to": "how_to/resume_a_training.html",
    "numbers": "numbers.html",
    "Trainer": "reference/api/training/Trainer.html",
    "MultiHeadLatentAttention": "reference/api/layers/MultiHeadLatentAttention.html",
    "ServingEngine": "reference/api/inference/ServingEngine.html",
    "layers": "reference/api/layers/index.html",
}
NAMES = (
    "BatchSizeSearch",
    "Exporter",
    "LRScheduler",
    "ModelDeployment",
    "MultiHeadLatentAttention",
    "RotaryEmbedding",
    "ServingEngine",
    "Trainer",
    "enable_lora",
    "launch_studio",
)
WORDS = {
    "gradient accumulation": "accumulate_gradients",
    "install": "install",
    "MLA": "choose_a_layer",
    "OOM": "fit_into_memory",
    "slowest layer": "profile_a_step",
    "lora": "lora",
    "memory": "memory",
    "resume": "resume",
}


@pytest.fixture(scope="module")
def site():
    folder = os.environ.get("DOCS_SITE")
    if folder is None:
        pytest.skip("`tox -e docs-browser` builds the site, and names its folder in DOCS_SITE")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def open_page(site, browser):
    """Returns a function that opens a page, which must log no error and ask no other host."""
    problems, contexts = [], []

    def check(request):
        if not request.url.startswith((site, "data:", "blob:")):
            problems.append(f"asked {request.url}")

    def open_page(path, width=1360, scheme="light"):
        viewport = {"width": width, "height": 900}
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: line.type == "error" and problems.append(line.text))
        page.on("request", check)
        page.goto(f"{site}/{path}", wait_until="networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1360])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_the_screen_and_is_accessible(open_page, name, width, scheme):
    page = open_page(PAGES[name], width, scheme)
    if folder := os.environ.get("DOCS_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}_{width}_{scheme}.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if axe := os.environ.get("AXE"):
        page.evaluate(Path(axe).read_text(encoding="utf-8"))
        violations = page.evaluate("axe.run().then((result) => result.violations)")
        assert [(violation["id"], violation["nodes"][0]["html"]) for violation in violations] == []


def test_the_search_finds_names_and_words(open_page):
    page = open_page(PAGES["home"])
    page.keyboard.press("Control+k")
    page.locator("input[role=combobox]").wait_for()
    for query in (*NAMES, *WORDS):
        page.keyboard.press("Control+a")
        page.keyboard.type(query)
        expected = WORDS.get(query, f"/{query}.html")
        positions = (1, 2, 3) if query in WORDS else (1, 2)
        options = (f"[role=option][aria-posinset='{n}'][href*='{expected}']" for n in positions)
        page.locator(", ".join(options)).first.wait_for()


def test_a_copied_example_is_code(open_page):
    page = open_page(PAGES["MultiHeadLatentAttention"])
    page.locator(".highlight:has(.gp) .md-code__button").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "layer.make_cache(batch_size=2, max_length=10)" in copied
    compile(copied, "example", "exec")
    assert ">>>" not in copied
    assert "(2, 5, 32)\n" not in copied
