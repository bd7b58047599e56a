"""No export of a random model passes its verification and computes something else.

Not part of a plain `tox`: `FUZZ_MODELS=500 FUZZ_FIRST=1000 tox -e fuzz`. The models of a number are
the same each time, so what is found is found again by its number.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
NUM_MODELS = int(os.environ.get("FUZZ_MODELS", "100"))
CHUNK = 50
"""Models of one process: what the frameworks keep of each adds up."""
WAYS = [
    ("tensorflow", "onnx", ()),
    ("tensorflow", "savedmodel", ()),
    ("tensorflow", "openvino", ()),
    ("jax", "onnx", ()),
    ("jax", "savedmodel", ()),
    ("torch", "onnx", ()),
    ("torch", "onnx", ("--all-routes",)),
]


@pytest.mark.parametrize(("backend", "export_format", "options"), WAYS)
def test_what_is_verified_is_right(backend, export_format, options, tmp_path):
    results = Path(os.environ.get("FUZZ_RESULTS", tmp_path)) / "-".join(
        (backend, export_format, *options)
    )
    for first in range(FIRST, FIRST + NUM_MODELS, CHUNK):
        end = min(first + CHUNK, FIRST + NUM_MODELS)
        command = [sys.executable, "-m", "integration_tests.export_fuzzer", export_format]
        command += [str(first), str(end), f"{results}.jsonl", *options]
        subprocess.run(
            command,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "KERAS_BACKEND": backend},
            check=True,
        )
    lines = Path(f"{results}.jsonl").read_text(encoding="utf-8").splitlines()
    outcomes = [json.loads(line) for line in lines]
    states = Counter(outcome["state"] for outcome in outcomes)
    print(
        backend,
        export_format,
        *options,
        dict(states),
        f"{sum(outcome['seconds'] for outcome in outcomes):.0f} s",
    )
    assert len(outcomes) == NUM_MODELS
    assert states["verified"] > 0
    assert not [outcome for outcome in outcomes if outcome["state"] in ("wrong", "crashed")]
