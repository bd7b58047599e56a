"""What `/openapi.json` says of a running server is so: schemathesis asks all that it describes.

Not part of a plain `tox`: `tox -e openapi`.
"""

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from integration_tests.served_models import serve

pytest.importorskip("schemathesis")

LOOSE = "(infer|classify|regress|mixture.*:predict|completions|tokenize)$"
"""JSON's schemas can't say that a shape and the values agree, that numbers are of one kind, or that
several inputs have one number of rows, nor that these models take no texts: here what is described
may be refused."""

LATE_IS_NO_FAULT = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""
"""A request may ask for its answer within a microsecond. None is late that does not ask."""


def ask_all(url: str, folder: Path, *options: str) -> None:
    """Lets schemathesis ask; what it finds is an error."""
    program = Path(sys.executable).parent / "schemathesis"
    call = [str(program), "run", f"{url}/openapi.json", "--no-color", "--max-examples", "50"]
    (folder / "schemathesis.toml").write_text(LATE_IS_NO_FAULT, encoding="utf-8")
    call += ["--phases", "examples,coverage,fuzzing", *options]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    assert re.search("Tested: [1-9]", done.stdout), done.stdout


@pytest.mark.parametrize("tokens", [None, ["secret"]])
def test_the_server_keeps_to_its_description(tokens, tmp_path):
    header = ("-H", "Authorization: Bearer secret") if tokens else ()
    with serve(tokens=tokens) as server:
        request = urllib.request.Request(f"{server.url}/openapi.json")
        request.add_header("Authorization", "Bearer secret")
        with urllib.request.urlopen(request) as response:
            assert "/v1/models/negation:predict" in json.load(response)["paths"]
        ask_all(server.url, tmp_path, *header, "--exclude-path-regex", LOOSE)
        options = ("--include-path-regex", LOOSE, "--exclude-checks", "positive_data_acceptance")
        ask_all(server.url, tmp_path, *header, *options)
