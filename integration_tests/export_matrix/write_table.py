"""Writes `docs/export_matrix.md` from the results of the three backends.

`python -m integration_tests.export_matrix.write_table`
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TARGET = HERE.parents[1] / "docs" / "export_matrix.md"
BACKENDS = ("tensorflow", "jax", "torch")
FORMATS = ("onnx", "savedmodel", "tensorrt", "openvino", "litert")
TITLES = {
    "tensorflow": "TensorFlow",
    "jax": "JAX",
    "torch": "PyTorch",
    "onnx": "ONNX",
    "savedmodel": "SavedModel",
    "tensorrt": "TensorRT",
    "openvino": "OpenVINO",
    "litert": "LiteRT",
}
_LONGEST = 420
_OWN_OF_BACKENDS = {
    "efficientnet": "what `Normalization` computed before it got the weights",
    "kerashub_llama": "KerasHub's operations on TensorFlow",
    "vision_transformer": "embeddings that were looked up before the table got its weights",
}
"""What differs in a model from backend to backend, when it is built and before it is exported."""
_INTRODUCTION = """# Export matrix

{num_models} models of random weights, exported from {num_backends} backends in {num_formats}
formats: {num_cells} cells. Written by `python -m integration_tests.export_matrix.write_table` from
`integration_tests/export_matrix/results/`, where `python -m integration_tests.export_matrix.run`
left what it found; `tox -e export` computes it anew and compares. How an export is made and
verified: [export](how_to/export_a_model.md).

Each artifact that says it is verified was loaded once more, by its runtime alone, and compared with
the model on batches that the Exporter does not use: of 2, 6 and 7 rows, lengths of 7, 8, 10, 12, 17
and 21, padded rows. What differs there by more than 1e-4 of the largest value of an output (1e-2
where a layer computes in float16), or at all in integers, is **wrong**.

- **verified**: the Exporter verified it, and so did the second look.
- **built**: the TensorRT-RTX engine was built of a verified ONNX file, and has not run, for want of
  a GPU. The Exporter says `unverified`.
- **failed**: `export` raised `ExportError` and left nothing.
- **not built**: Keras itself refused to make the model on this backend.
- **begun**: the process ended in this cell, twice or with the run; `-`: no run came to this cell.

The letter is the framework that wrote it: T for TensorFlow, J for JAX, P for PyTorch; where it is
not the backend, in a process of its own.
"""


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the results by backend, of those that are there."""
    paths = {backend: folder / f"{backend}.json" for backend in BACKENDS}
    return {
        backend: json.loads(path.read_text(encoding="utf-8"))
        for backend, path in paths.items()
        if path.exists()
    }


def state_of(cell: dict[str, Any]) -> str:
    """Returns what the table calls the state of a cell."""
    return (
        "built" if cell["state"] == "unverified" and "engine" in cell["reason"] else cell["state"]
    )


def _writer(cell: dict[str, Any], backend: str) -> str:
    match = re.search(r"a (TensorFlow|JAX|PyTorch) process", cell.get("route", ""))
    return match.group(1)[0] if match else TITLES[backend][0]


def _show(cell: dict[str, Any] | None, backend: str) -> str:
    if cell is None:
        return "-"
    state = state_of(cell)
    if state in ("verified", "built", "unverified"):
        return f"{state} {_writer(cell, backend)}"
    return f"**{state}**"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _totals(results: dict[str, dict[str, Any]]) -> str:
    rows = []
    for backend, backend_results in results.items():
        for form in FORMATS:
            cells = [
                formats[form] for formats in backend_results["cells"].values() if form in formats
            ]
            counts = Counter(map(state_of, cells))
            words = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
            seconds = sum(cell.get("seconds", 0) for cell in cells)
            rows.append([TITLES[backend], TITLES[form], words, f"{seconds:.0f}"])
    return _table(["from", "to", "cells", "seconds"], rows)


def _bytes(results: dict[str, dict[str, Any]]) -> str:
    """Returns for how many models the traced program wrote the same file from all backends."""
    same, others = [], []
    for name in next(iter(results.values()))["cells"]:
        cells = [
            backend_results["cells"].get(name, {}).get("onnx", {})
            for backend_results in results.values()
        ]
        if all("sha256" in cell and "the traced program" in cell["route"] for cell in cells):
            (same if len({cell["sha256"] for cell in cells}) == 1 else others).append(name)
    reasons = "; ".join(f"`{name}` ({_OWN_OF_BACKENDS.get(name, 'unknown')})" for name in others)
    return (
        f"{len(same) + len(others)} models have an ONNX file of the traced program from each "
        f"backend, with the same weights: {len(same)} files have the same bytes from all of them. "
        f"The models themselves differ in the others: {reasons or 'none'}."
    )


def _cells(results: dict[str, dict[str, Any]], names: list[str]) -> str:
    header = ["model", "from", *(TITLES[form] for form in FORMATS)]
    rows = []
    for name in names:
        for index, (backend, backend_results) in enumerate(results.items()):
            cells = backend_results["cells"].get(name, {})
            columns = [_show(cells.get(form), backend) for form in FORMATS]
            rows.append(["" if index else f"`{name}`", TITLES[backend], *columns])
    return _table(header, rows)


def _failures(results: dict[str, dict[str, Any]], names: list[str]) -> str:
    """Returns each error once, with the cells that have it."""
    conversions: dict[tuple[str, str], list[str]] = {}
    for name in names:
        for backend, backend_results in results.items():
            for form, cell in sorted(backend_results["cells"].get(name, {}).items()):
                if state_of(cell) not in ("verified", "built"):
                    words = _shorten(cell.get("error") or cell.get("reason", ""))
                    conversion = f"{TITLES[backend]} to {TITLES[form]}"
                    conversions.setdefault((name, words), []).append(conversion)
    lines = [
        f"- `{name}` ({', '.join(where)}): {words}" for (name, words), where in conversions.items()
    ]
    return "\n".join(lines) or "None."


def _shorten(words: str) -> str:
    """Leaves out of an error what is of the machine, and what is long."""
    words = re.sub(r"\S*/(?=[\w.]+)", "", words.replace("|", "/").replace("`", "'"))
    words = re.sub(r"\x1b\[[0-9;]*m|0x[0-9a-f]+", "", words)
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST].rstrip()} ..."


def write(results: dict[str, dict[str, Any]]) -> str:
    """Returns the text of the page."""
    names = list(
        dict.fromkeys(
            name for backend_results in results.values() for name in backend_results["cells"]
        )
    )
    introduction = _INTRODUCTION.format(
        num_models=len(names),
        num_backends=len(results),
        num_formats=len(FORMATS),
        num_cells=sum(
            len(formats)
            for backend_results in results.values()
            for formats in backend_results["cells"].values()
        ),
    )
    versions = next(iter(results.values()))["versions"]
    releases = ", ".join(f"{package} {release}" for package, release in sorted(versions.items()))
    parts = [
        introduction,
        f"With {releases}.",
        "## Totals",
        _totals(results),
        _bytes(results),
        "## Cells",
        _cells(results, names),
        "## What failed, and why",
        _failures(results, names),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    TARGET.write_text(write(read_results(HERE / "results")), encoding="utf-8")
