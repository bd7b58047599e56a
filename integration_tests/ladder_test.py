"""Each guide as a reader runs it: its notebook, beside one framework and what its page installs."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = sorted(path.stem for path in (ROOT / "guides").glob("[0-9]*.py"))
SECONDS = 1800


@pytest.fixture(scope="session")
def notebooks(tmp_path_factory):
    """Returns the folder of the notebooks."""
    out = tmp_path_factory.mktemp("guides")
    subprocess.run([sys.executable, ROOT / "guides/build.py", out], check=True)
    return out / "notebooks"


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
def test_a_notebook_runs_beside_what_its_page_installs(install, notebooks, backend, guide):
    text = (notebooks / f"{guide}.ipynb").read_text(encoding="utf-8")
    opening = "".join(json.loads(text)["cells"][0]["source"])
    package, *others = shlex.split(re.search("pip install (.+)", opening)[1])
    extras = ",".join([backend, package.removeprefix(".").strip("[]")])
    place = install(extras, *others, "ipykernel", "nbclient")
    folder = place.folder / f"{guide}_{backend}"
    folder.mkdir()
    (folder / f"{guide}.ipynb").write_text(text, encoding="utf-8")
    start = time.monotonic()
    done = place.run(
        "jupyter-execute",
        "--inplace",
        folder / f"{guide}.ipynb",
        seconds=SECONDS,
        KERAS_BACKEND=backend,
    )
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr[-4000:]
    ran = json.loads((folder / f"{guide}.ipynb").read_text(encoding="utf-8"))
    outputs = [each for cell in ran["cells"] for each in cell.get("outputs", ())]
    printed = "".join("".join(each["text"]) for each in outputs if each.get("name") == "stdout")
    print(f"\n{guide} on {backend}, {seconds:.0f} s: {printed.rstrip().splitlines()[-1]}")
    assert any("image/png" in each.get("data", {}) for each in outputs)
