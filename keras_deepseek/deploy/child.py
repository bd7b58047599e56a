"""The other end of `InChild`: exports a saved model through another backend, in its own process.

`python -m keras_deepseek.deploy.child FOLDER` reads `job.json`, `model.keras` and `samples.npz`
there, fills the folder that the job names, and leaves `result.json` and `outputs.npz`.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from keras_deepseek.artifacts.errors import InvalidInputError, NotSupportedError
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.failure_reason import failure_reason
from keras_deepseek.deploy.stage_display import CHILD_MARK


def save_batches(path: Path, batches: list[dict[str, Array]]) -> None:
    """Writes batches of arrays by name into one `.npz` file."""
    arrays = {
        # The file format knows no bfloat16: it is stored by its bits, the dtype in the key.
        f"{index}:{array.dtype}:{name}": array.view("uint16") if _is_bfloat16(array) else array
        for index, batch in enumerate(batches)
        for name, array in batch.items()
    }
    # NumPy 1.26 would take `allow_pickle` for the name of an array.
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_batches(path: Path) -> list[dict[str, Array]]:
    """Returns what `save_batches` wrote."""
    batches: dict[int, dict[str, Array]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            index, dtype, name = key.split(":", 2)
            batches.setdefault(int(index), {})[name] = arrays[key].view(dtype)
    return [batches[index] for index in sorted(batches)]


def _is_bfloat16(array: Array) -> bool:
    return str(array.dtype) == "bfloat16"


def main(work: Path) -> None:
    """Does the job in the folder `work`.

    Args:
        work: The folder that the other end filled.
    """
    job = json.loads((work / "job.json").read_text(encoding="utf-8"))
    try:
        result = _export(work, job)
    except Exception as error:  # noqa: BLE001 - it is raised again on the other side.
        result = {"error": failure_reason(error)}
    (work / "result.json").write_text(json.dumps(result), encoding="utf-8")


def end_with_parent() -> None:
    """Ends this process as soon as the one that holds the other end of its input has ended.

    Else it would go on for minutes for nobody, in folders that the next export removes.
    """

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _export(work: Path, job: dict[str, Any]) -> dict[str, Any]:
    from keras_deepseek.backend.keras_file import load_keras_file
    from keras_deepseek.backend.named_model import NamedModel
    from keras_deepseek.deploy.custom_objects import load_objects, receive
    from keras_deepseek.deploy.failure_place import whole_tracebacks
    from keras_deepseek.deploy.formats.export_format import run_format
    from keras_deepseek.deploy.registry import create_format

    load_objects(work)
    calibration = work / "calibration.npz"
    if calibration.exists():
        job["options"]["calibration"] = load_batches(calibration)
    export_format = receive(work / "format.pickle")
    if export_format is None:
        export_format = create_format(job["format"], job["options"])
    folder = Path(job["folder"])
    how = ""
    if not job["is_written"]:
        loaded = load_keras_file(work / "model.keras", job["custom_objects_from"], is_own=True)
        print(f"{CHILD_MARK}writing", flush=True)
        try:
            with whole_tracebacks():
                how = export_format.write(NamedModel(loaded, job["precision"]), folder)
        except InvalidInputError as error:  # What no other route would do either.
            return {"refused": str(error)}
    samples = load_batches(work / "samples.npz")
    print(f"{CHILD_MARK}running it on {len(samples)} batches", flush=True)
    try:
        save_batches(work / "outputs.npz", run_format(export_format, folder, samples))
    except NotSupportedError as error:
        return {"how": how, "ran": False, "reason": str(error)}
    return {"how": how, "ran": True, "reason": ""}


if __name__ == "__main__":
    end_with_parent()
    main(Path(sys.argv[1]))
