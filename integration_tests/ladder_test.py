"""Each guide as a reader runs it: its notebook, beside one framework and what its page installs."""

import re
import shlex
import time
from pathlib import Path

import nbformat
import pytest

from guides import build

ROOT = Path(__file__).parents[1]
GUIDES = sorted(path.stem for path in (ROOT / "guides").glob("[0-9]*.py"))
SECONDS = 1800


@pytest.fixture(scope="session")
def notebooks(tmp_path_factory):
    """Returns the folder of the notebooks."""
    out = tmp_path_factory.mktemp("guides")
    build.main([str(out)])
    return out / "notebooks"


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
def test_a_notebook_runs_beside_what_its_page_installs(install, notebooks, backend, guide):
    notebook = nbformat.read(notebooks / f"{guide}.ipynb", 4)
    package, *other_packages = shlex.split(
        re.search("pip install (.+)", notebook.cells[0].source)[1]
    )
    extras = ",".join([backend, package.removeprefix(".").strip("[]")])
    installation = install(extras, *other_packages, "ipykernel", "nbclient")
    folder = installation.folder / f"{guide}_{backend}"
    folder.mkdir()
    path = folder / f"{guide}.ipynb"
    nbformat.write(notebook, path)
    start = time.monotonic()
    command = ("jupyter-execute", "--inplace", path)
    done = installation.run(*command, seconds=SECONDS, KERAS_BACKEND=backend)
    assert done.returncode == 0, done.stderr[-4000:]
    ran = build.read_outputs(nbformat.read(path, 4))
    build.print_outcome(f"\n{guide} on {backend}", start, ran)
    assert ran.pictures
