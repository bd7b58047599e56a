"""Each view of Studio beside a picture of it that a person has looked at.

The pictures lie in `studio_references`. `STUDIO_PICTURES=integration_tests/studio_references` makes
them anew: look at each one before you commit it. They are compared as blocks of 16 pixels, where
the page has the font of the pictures, DejaVu Sans.
"""

import io
import os
from pathlib import Path

import pytest

from integration_tests.studio_pages import SCHEMES, SIZES, VIEWS, expect, studio_of_runs
from keras_deepseek.studio import Studio
from tests.oracles.run_records import invent

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
np = pytest.importorskip("numpy")

REFERENCES = Path(__file__).parent / "studio_references"
TEXT = "Update-to-weight ratio by layer"
WIDTH_OF_TEXT = 220.2
"""Its pixels in the font of the pictures, at 14 pixels."""

COLOURS = 64
BLOCK = 16
TALLEST = 2000
"""Pixels of a picture; the rest of a longer page is not compared."""

DOUBT, MOST_MEAN, MOST_SHARE = 8, 0.3, 0.003
"""A difference of blocks, of 255, that the few colours of a picture make (a few blocks up to 15);
what the mean may be beyond it; and the share of blocks that may differ by more than 40."""


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    faults = ("healthy", "overfitting", "diverging", "starved")
    with studio_of_runs(tmp_path_factory.mktemp("runs"), faults, 800) as studio:
        yield studio


def width_of_text(page):
    return page.evaluate(
        """(text) => {
            const pen = document.createElement("canvas").getContext("2d");
            pen.font = `14px ${getComputedStyle(document.body).fontFamily}`;
            return pen.measureText(text).width;
        }""",
        TEXT,
    )


def compare(page, name, *, is_whole=True):
    """Compares a page with its reference, or keeps it as one."""
    data = page.screenshot(full_page=is_whole, animations="disabled", caret="hide")
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if image.width > 2000:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    if folder := os.environ.get("STUDIO_PICTURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        image = image.crop((0, 0, image.width, min(image.height, TALLEST)))
        few = image.quantize(
            COLOURS, method=Image.Quantize.FASTOCTREE, kmeans=3, dither=Image.Dither.NONE
        )
        few.save(Path(folder) / f"{name}.png", optimize=True)
        return
    if abs(width_of_text(page) - WIDTH_OF_TEXT) > 1:
        pytest.skip("The font is not that of the pictures, DejaVu Sans.")
    expected = Image.open(REFERENCES / f"{name}.png").convert("RGB")
    height = min(image.height, TALLEST)
    assert abs(height - expected.height) <= 2 * BLOCK, (image.size, expected.size)
    size = (expected.width // BLOCK, expected.height // BLOCK)
    # Rows below the shorter of the two are left out.
    box = (0, 0, expected.width, min(height, expected.height))
    received_pixels, expected_pixels = (
        np.asarray(picture.crop(box).resize(size, Image.Resampling.BOX), float)
        for picture in (image, expected)
    )
    differences = np.abs(received_pixels - expected_pixels).max(axis=-1)
    share = (differences > 40).mean()
    mean = np.maximum(differences - DOUBT, 0).mean()
    assert mean <= MOST_MEAN, f"{name}: blocks differ by {mean:.2f}"
    assert share <= MOST_SHARE, f"{name}: {share:.1%} of the blocks differ"


@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size[0]))
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_looks_like_its_reference(studio, open_page, view, scheme, size):
    page = open_page(f"{studio.url}&run=starved&view={view}", size, scheme)
    waited = {
        "Training": "Load of the experts",
        "Model": "block_1/experts",
        "Performance": "By kind of layer",
        "Runs": "All have ended.",
    }
    expect(page, waited[view])
    page.get_by_text("Reading the").wait_for(state="detached")
    page.wait_for_timeout(700)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    compare(page, f"{view.lower()}_{size[0]}_{scheme}")


def name_the_folder(route):
    """Gives the page another folder than the one of the test, which the page names."""
    answer = route.fetch()
    route.fulfill(response=answer, json={**answer.json(), "folder": "/data/runs"})


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_empty_folder_looks_like_its_reference(tmp_path, open_page, scheme):
    with Studio(tmp_path, port=0) as studio:
        page = open_page("about:blank", scheme=scheme)
        page.route("**/api/settings", name_the_folder)
        page.goto(studio.url)
        expect(page, "/data/runs")
        compare(page, f"empty_1360_{scheme}")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_lost_server_looks_like_its_reference(tmp_path, open_page, scheme):
    invent(tmp_path / "first.sqlite", steps=400, begin=1.7e9)
    with Studio(tmp_path, port=0) as studio:
        page = open_page(studio.url, scheme=scheme)
        expect(page, "Load of the experts")
        page.locator(".u-over").first.wait_for()
        page.wait_for_timeout(700)
    expect(page, "Reconnecting")
    compare(page, f"lost_1360_{scheme}", is_whole=False)
