"""Runs artifacts in a process of its own, by their runtimes alone: neither Keras nor the Exporter.

`python -m integration_tests.export_matrix.artifact_runner` reads a request a line, and answers each
with a line. It is `ArtifactRunner` that speaks to it.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Batch = dict[str, Any]


def save(path: Path, batches: list[Batch]) -> None:
    """Writes batches of arrays by name into one file."""
    arrays = {
        f"{index}:{name}": a for index, batch in enumerate(batches) for name, a in batch.items()
    }
    np.savez(path, allow_pickle=False, **arrays)


def load(path: Path) -> list[Batch]:
    """Returns what `save` wrote."""
    batches: dict[int, Batch] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            index, name = key.split(":", 1)
            batches.setdefault(int(index), {})[name] = arrays[key]
    return [batches[index] for index in sorted(batches)]


def run_onnx(bundle: Path, batches: list[Batch]) -> list[Batch]:
    """Runs `model.onnx` by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        bundle / "model.onnx", providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(None, batch), strict=True)) for batch in batches]


def run_saved_model(bundle: Path, batches: list[Batch]) -> list[Batch]:
    """Runs the signature `serving_default` by TensorFlow."""
    import tensorflow as tf

    serve = tf.saved_model.load(str(bundle)).signatures["serving_default"]
    return [
        {
            name: tensor.numpy()
            for name, tensor in serve(**{n: tf.constant(a) for n, a in batch.items()}).items()
        }
        for batch in batches
    ]


def run_openvino(bundle: Path, batches: list[Batch]) -> list[Batch]:
    """Runs `model.xml` by OpenVINO, in the precision that it has."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
    core = openvino.Core()
    model = core.read_model(bundle / "model.xml")
    names = [output.get_any_name() for output in model.outputs]
    compiled = core.compile_model(model, "CPU", hints)
    outputs = (compiled(batch) for batch in batches)
    return [{name: arrays[index].copy() for index, name in enumerate(names)} for arrays in outputs]


def run_litert(bundle: Path, batches: list[Batch]) -> list[Batch]:
    """Runs `model.tflite` by LiteRT's interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(bundle / "model.tflite")).get_signature_runner()
    return [runner(**batch) for batch in batches]


RUN: dict[str, Callable[[Path, list[Batch]], list[Batch]]] = {
    "onnx": run_onnx,
    "savedmodel": run_saved_model,
    "openvino": run_openvino,
    "litert": run_litert,
}


class ArtifactRunner:
    """The other end: starts the process when it is first needed, and anew when it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, form: str, bundle: Path, batches: list[Batch]) -> list[Batch]:
        """Returns the outputs of an artifact for each batch.

        Raises:
            RuntimeError: It could not be loaded or run.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "integration_tests.export_matrix.artifact_runner"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
            )
        with tempfile.TemporaryDirectory(prefix="export_matrix_") as work:
            sent, received = Path(work) / "given.npz", Path(work) / "received.npz"
            save(sent, batches)
            request = {"form": form, "bundle": str(bundle), "files": [str(sent), str(received)]}
            answer = self._ask(json.dumps(request))
            if answer != "done":
                raise RuntimeError(answer or "the process that runs artifacts died")
            return load(received)

    def _ask(self, request: str) -> str:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


def main() -> None:
    """Answers requests until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        sent, received = map(Path, request["files"])
        try:
            with contextlib.redirect_stdout(sys.stderr):
                save(received, RUN[request["form"]](Path(request["bundle"]), load(sent)))
            answer = "done"
        except Exception as error:  # noqa: BLE001 - the other end is told.
            answer = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(answer, flush=True)


if __name__ == "__main__":
    main()
