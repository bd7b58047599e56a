"""The program that a `ChildProcess` runs: it exports saved models by another backend.

`python -m keras_deepseek.deploy.routes.child` reads the path of one folder from each line of its
standard input. That folder holds `job.json`, `model.keras` and `samples.npz`. The worker writes the
artifact into the folder that the job names, leaves `result.json` and `outputs.npz` beside the job,
and prints that it is done.
"""

import gc
import json
import os
import queue
import site
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array, Batch, Signature
from keras_deepseek.deploy.failure_reason import failure_reason
from keras_deepseek.deploy.stage_display import CHILD_MARK
from keras_deepseek.errors import InvalidInputError, NotSupportedError

BEGUN, DONE = "begun", "done"
"""The first and the last stage of each job."""
_IDLE_TIMEOUT = 120.0
"""Seconds without a job after which the process ends. One of TensorFlow holds about 800 MB."""


def save_batches(path: Path, batches: list[Batch]) -> None:
    """Writes a list of batches, each a dict of arrays, into one `.npz` file."""
    arrays = {
        # `.npz` has no bfloat16: its bits are stored as uint16, and the dtype in the key.
        f"{index}:{array.dtype}:{name}": array.view("uint16") if _is_bfloat16(array) else array
        for index, batch in enumerate(batches)
        for name, array in batch.items()
    }
    # In NumPy 1.26, `allow_pickle` would be the name of an array.
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_batches(path: Path) -> list[Batch]:
    """Reads the list of batches that `save_batches` wrote."""
    batches: dict[int, Batch] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            index, dtype, name = key.split(":", 2)
            batches.setdefault(int(index), {})[name] = arrays[key].view(dtype)
    return [batches[index] for index in sorted(batches)]


def _is_bfloat16(array: Array) -> bool:
    return str(array.dtype) == "bfloat16"


def main(work: Path) -> None:
    """Runs the export job in a folder, and writes its result there."""
    job = json.loads((work / "job.json").read_text(encoding="utf-8"))
    try:
        result = _export(work, job)
    except Exception as error:  # noqa: BLE001 - the parent raises it again.
        result = {"error": failure_reason(error)}
    result["sources"] = _changeable_sources()
    (work / "result.json").write_text(json.dumps(result), encoding="utf-8")


def serve() -> None:
    """Runs export jobs until the parent process ends or the idle timeout is over."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(1)  # The parent has ended. The next export removes the folders.

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            work = Path(lines.get(timeout=_IDLE_TIMEOUT).rstrip("\n"))
        except queue.Empty:
            return
        say(BEGUN)
        _adopt_settings(json.loads((work / "process.json").read_text(encoding="utf-8")))
        with (work / "errors.txt").open("w", encoding="utf-8") as errors:
            os.dup2(errors.fileno(), sys.stderr.fileno())
        main(work)
        sys.stderr.flush()
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), sys.stderr.fileno())
        _release_model()
        say(DONE)


def say(stage: str) -> None:
    """Prints the name of an export stage on a line that the parent process recognizes."""
    print(f"\n{CHILD_MARK}{stage}", flush=True)


def _adopt_settings(process: dict[str, Any]) -> None:
    sys.path[:] = process["path"]
    os.chdir(process["folder"])
    os.environ["TMPDIR"] = tempfile.tempdir = process["temporary"]


def _release_model() -> None:
    import keras

    keras.backend.clear_session()
    gc.collect()


def _changeable_sources() -> dict[str, int]:
    """Returns the modification times of imported source files outside installed packages."""
    installed = tuple({sys.prefix, sys.base_prefix, *site.getsitepackages()})
    files = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
    user_files = (file for file in files if file and not file.startswith(installed))
    return {file: Path(file).stat().st_mtime_ns for file in user_files if Path(file).exists()}


def _export(work: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Writes or builds the artifact if the job has none yet, runs it, and returns the result."""
    from keras_deepseek.backend.export.named_model import NamedModel
    from keras_deepseek.backend.keras_private.keras_file import load_keras_file
    from keras_deepseek.deploy.failure_reason import whole_tracebacks
    from keras_deepseek.deploy.formats.export_format import run_format
    from keras_deepseek.deploy.formats.registry import choose_format
    from keras_deepseek.deploy.routes.custom_objects import load_objects, receive

    load_objects(work)
    export_format = receive(work / "format.pickle")
    if export_format is None:
        path = work / "calibration.npz"
        calibration = load_batches(path) if path.exists() else None
        export_format = choose_format(job["format"], job["options"], calibration).export_format
    folder = Path(job["folder"])
    how = ""
    if build := job.get("build"):
        signature = Signature.from_dict(build["signature"])
        how = export_format.build(Path(build["source"]), folder, signature, build["precision"])
    elif not job["is_written"]:
        loaded = load_keras_file(work / "model.keras", job["custom_objects_from"], is_own=True)
        say("writing")
        try:
            with whole_tracebacks():
                how = export_format.write(NamedModel(loaded, job["precision"]), folder)
        except InvalidInputError as error:  # It would fail on all other routes, too.
            return {"refused": str(error)}
    samples = load_batches(work / "samples.npz")
    say(f"running it on {len(samples)} batches")
    try:
        save_batches(work / "outputs.npz", run_format(export_format, folder, samples))
    except NotSupportedError as error:
        return {"how": how, "ran": False, "reason": str(error)}
    return {"how": how, "ran": True, "reason": ""}


if __name__ == "__main__":
    serve()
