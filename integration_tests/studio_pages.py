"""Pages of Studio in a browser, for the tests that open them."""

from collections.abc import Iterator
from contextlib import contextmanager

from keras_deepseek.studio import Studio
from tests.oracles.run_records import invent

VIEWS = ("Training", "Model", "Performance", "Runs")
SIZES = ((360, 780), (1360, 900), (2560, 1400))
SCHEMES = ("light", "dark")


@contextmanager
def opened_pages(browser) -> Iterator:
    """Yields a function that opens a page, which must log no error and ask no other host."""
    problems, contexts = [], []

    def open_page(url, size=(1360, 900), scheme="light", **options):
        width, height = size
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, **options
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
    assert not problems, problems


@contextmanager
def studio_of_runs(folder, faults, steps) -> Iterator[Studio]:
    """Yields a Studio of invented runs, the same for each call."""
    for index, fault in enumerate(faults):
        path = folder / f"{fault}.sqlite"
        invent(path, fault, steps=steps, seed=index, begin=1.7e9 + 300 * index)
    with Studio(folder, port=0) as studio:
        yield studio


def expect(page, text, seconds=20):
    """Waits for a text on a page."""
    page.get_by_text(text).first.wait_for(timeout=1000 * seconds)
