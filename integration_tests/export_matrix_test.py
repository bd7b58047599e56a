"""Every model of the export matrix in every format, from the backend that runs.

No artifact may be silently wrong, what fails must say of what, and what `docs/export_matrix.md`
says is verified must be so again. A part of it:
`KERAS_BACKEND=jax python -m pytest integration_tests/export_matrix_test.py -k lstm`
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from integration_tests.export_matrix.models import EXPORTED
from integration_tests.export_matrix.run import FORMATS, RESULTS

BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")
COMMITTED = json.loads((RESULTS / f"{BACKEND}.json").read_text(encoding="utf-8"))["cells"]
NAMES_A_CAUSE = re.compile(
    r"through (the|a) \w+ (backend|process): \w+|ONNX has one tensor"
    r"|TensorRT can't take|node \w+ \(|LiteRT has no operation for \w+|LiteRT's converter fails: "
)
"""Which route, operator or node it was: a traceback alone is no reason."""


@pytest.fixture(scope="session")
def cells(request, tmp_path_factory):
    """Returns what was found, by model and format, for the models that were asked for."""
    names = list(
        dict.fromkeys(
            item.callspec.params["model"]
            for item in request.session.items
            if item.path == Path(__file__) and hasattr(item, "callspec")
        )
    )
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "integration_tests.export_matrix.run", "--results", folder]
    subprocess.run([*command, "--models", *names], check=True)
    return json.loads((folder / f"{BACKEND}.json").read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("model", EXPORTED)
def test_a_cell_is_verified_or_says_what_it_fails_of(cells, model, form):
    cell = cells[model][form]
    committed = COMMITTED.get(model, {}).get(form, cell)  # One that is new is looked at by itself.
    assert cell["state"] != "wrong", cell["error"]
    assert cell["state"] != "begun", "the process ended in this cell"
    if cell["state"] == "failed":
        assert not cell.get("not_ours"), f"not an error of the Exporter: {cell['error']}"
        assert NAMES_A_CAUSE.search(cell["error"]), cell["error"]
    if cell["state"] == "not built":
        assert cell["error"].startswith("ValueError: ")
        assert BACKEND in cell["error"]
    if committed["state"] in ("verified", "unverified"):
        assert cell["state"] == committed["state"], cell
