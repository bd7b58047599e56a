"""Exports every model of the matrix in every format, from the backend that runs.

`KERAS_BACKEND=jax python -m integration_tests.export_matrix.run` writes `results/jax.json`, after
every cell anew, and goes on where an earlier run was ended; `--anew` forgets what it found.
"""

import argparse
import gc
import hashlib
import importlib.metadata
import json
import re
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import keras

from integration_tests.export_matrix import models
from integration_tests.export_matrix.artifact_runner import ArtifactRunner
from integration_tests.export_matrix.fresh_batches import fresh_batches
from integration_tests.second_look import compute, difference, tolerance
from keras_deepseek.deploy import Exporter, register_exporter
from keras_deepseek.deploy.artifact_files import installed_versions
from keras_deepseek.deploy.export_job import ExportReport
from keras_deepseek.deploy.formats.openvino import OpenVINOFormat
from keras_deepseek.errors import KerasDeepSeekError

FORMATS = ("onnx", "savedmodel", "tensorrt", "openvino", "litert")
RESULTS = Path(__file__).parent / "results"
Cell = dict[str, Any]


class Results:
    """What was found, in a file that is written after every cell."""

    def __init__(self, path: Path, *, anew: bool) -> None:
        self.path = path
        self.cells: dict[str, dict[str, Cell]] = {}
        if path.exists() and not anew:
            self.cells = json.loads(path.read_text(encoding="utf-8"))["cells"]

    def needs(self, model: str, form: str) -> bool:
        """Returns whether a cell was not yet computed, or its process died in it the first time."""
        cell = self.cells.get(model, {}).get(form, {"state": "begun", "tries": 0})
        return cell["state"] == "begun" and cell["tries"] <= 1

    def begin(self, model: str, form: str) -> None:
        """Notes that a cell is worked on, so that one that ends the process is known for it."""
        tries = self.cells.get(model, {}).get(form, {}).get("tries", 0) + 1
        self.write(model, form, {"state": "begun", "tries": tries, "error": "the process ended"})

    def write(self, model: str, form: str, cell: Cell) -> None:
        """Keeps a cell."""
        self.cells.setdefault(model, {})[form] = cell
        results = {
            "backend": keras.backend.backend(),
            "versions": {**installed_versions(), **_further_versions()},
            "cells": self.cells,
        }
        text = json.dumps(results, indent=1, sort_keys=True)
        unfinished = self.path.with_suffix(".new")
        unfinished.write_text(f"{text}\n", encoding="utf-8")
        unfinished.replace(self.path)


class Matrix:
    """One backend's part of the matrix."""

    def __init__(self, results: Results, weights: Path | None) -> None:
        self._results = results
        self._weights = weights
        self._artifacts = ArtifactRunner()
        register_exporter(OpenVINOFormat())

    def run_model(self, name: str, formats: list[str]) -> None:
        """Computes the cells of one model."""
        missing = [form for form in formats if self._results.needs(name, form)]
        if not missing:
            return
        try:
            model = models.build(name, self._weights)
        except Exception as error:  # noqa: BLE001 - the cells say so.
            for form in missing:
                self._keep(name, form, {"state": "not built", "error": _shorten(error)}, 0.0)
            return
        for form in missing:
            self._results.begin(name, form)
            started = time.monotonic()
            cell = self._run_cell(model, form)
            self._keep(name, form, cell, time.monotonic() - started)
        del model
        gc.collect()

    def _keep(self, name: str, form: str, cell: Cell, seconds: float) -> None:
        self._results.write(name, form, {**cell, "seconds": round(seconds, 1)})
        words = cell.get("error") or f"{cell['route']} {cell.get('difference', '')}"
        backend = keras.backend.backend()
        print(f"{backend} {name} {form}: {cell['state']} {seconds:.1f} s {words}", flush=True)

    def _run_cell(self, model: keras.Model, form: str) -> Cell:
        with tempfile.TemporaryDirectory(prefix="export_matrix_") as work:
            bundle = Path(work) / "1"
            try:
                exporter = Exporter(model, form, verbose=False)
                report = exporter.export(bundle)
            except KerasDeepSeekError as error:
                return {"state": "failed", "error": _shorten(error)}
            except Exception as error:  # noqa: BLE001 - an error that is not the Exporter's own.
                return {"state": "failed", "error": _shorten(error), "not_ours": True}
            cell = _describe(report)
            if form == "onnx" and self._weights is not None:
                file = (bundle / "model.onnx").read_bytes()
                cell["sha256"] = hashlib.sha256(file).hexdigest()
            if cell["state"] == "verified":
                cell |= self._check_again(exporter, form, bundle)
            return cell

    def _check_again(self, exporter: Exporter, form: str, bundle: Path) -> Cell:
        """Compares at sizes that the Exporter has not seen, without its code."""
        model, signature = exporter._model.model, exporter.signature
        batches, expected = compute(model, signature, fresh_batches(model, signature))
        if not batches:
            return {"state": "wrong", "error": "the model takes none of the fresh batches"}
        try:
            received = self._artifacts.run(form, bundle, batches)
        except RuntimeError as error:
            return {"state": "wrong", "error": f"does not run at fresh sizes: {error}"}
        share = difference(expected, received)
        checked = {"difference": float(f"{share:.1e}"), "fresh_batches": len(batches)}
        if share <= tolerance(model):
            return checked
        return {
            **checked,
            "state": "wrong",
            "error": f"differs by {share:.2g} of the largest value",
        }


def _further_versions() -> dict[str, str]:
    """Returns the releases of what the matrix needs beside what an export does."""
    return {
        name: importlib.metadata.version(name)
        for name in ("ai-edge-litert", "keras-hub", "openvino")
    }


def _describe(report: ExportReport) -> Cell:
    state, reason = report.verification.state, report.verification.reason
    cell: Cell = {"state": state, "route": report.route}
    if reason:
        cell["reason"] = reason
    if report.passed_over:
        cell["passed_over"] = [_shorten(words) for words in report.passed_over]
    return cell


def _shorten(error: object) -> str:
    """Returns an error in a line, without what differs from machine to machine."""
    words = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    words = re.sub(r"\x1b\[[0-9;]*m", "", words)
    words = re.sub(r"(/[\w.+-]+)+/(?=[\w.])", "", words)
    return " ".join(words.split())[:1200]


def main() -> None:
    """Runs what is asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(models.EXPORTED), metavar="NAME")
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="a folder")
    parser.add_argument(
        "--weights",
        type=Path,
        help="a folder of weights for all backends: the bytes of their ONNX files are compared",
    )
    parser.add_argument("--anew", action="store_true", help="forget what was found before")
    arguments = parser.parse_args()
    for folder in filter(None, (arguments.results, arguments.weights)):
        folder.mkdir(parents=True, exist_ok=True)
    path = arguments.results / f"{keras.backend.backend()}.json"
    matrix = Matrix(Results(path, anew=arguments.anew), arguments.weights)
    warnings.simplefilter("ignore")  # The exporters' own, of which there are many.
    for name in arguments.models:
        matrix.run_model(name, arguments.formats)


if __name__ == "__main__":
    main()
