"""Exports the models of some numbers by the backend that runs, and says what came of each.

    python -m integration_tests.export_fuzzer onnx 0 100 results.jsonl

A line is written as soon as a model is through; a run that was stopped goes on where it was.
"""

import argparse
import contextlib
import gc
import itertools
import json
import signal
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import keras

from integration_tests.export_fuzzer.fresh_batches import fresh_batches
from integration_tests.export_fuzzer.random_models import random_model
from integration_tests.second_look import call, compute, difference, tolerance
from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy import Exporter, register_exporter
from keras_deepseek.deploy.export_job import ExportReport
from keras_deepseek.deploy.formats.onnx import OnnxFormat
from keras_deepseek.deploy.formats.openvino import OpenVINOFormat
from keras_deepseek.deploy.formats.saved_model import SavedModelFormat
from keras_deepseek.deploy.samples import make_samples
from keras_deepseek.errors import ExportError, NotSupportedError

_SECONDS = 300
"""After this long an export counts as one that hangs."""
_FORMATS = {"onnx": OnnxFormat, "savedmodel": SavedModelFormat, "openvino": OpenVINOFormat}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("format", choices=_FORMATS)
    parser.add_argument("first", type=int, help="the number of the first model")
    parser.add_argument("end", type=int, help="the number after the last model's")
    parser.add_argument("results", type=Path, help="where a line for each model is appended")
    parser.add_argument(
        "--all-routes", action="store_true", help="by other backends too, as a user's export is"
    )
    arguments = parser.parse_args()
    name = arguments.format
    if not arguments.all_routes or name == "openvino":
        name = f"{name}_of_{keras.backend.backend()}"
        register_exporter(_one_route(arguments.format, name))
    done = set()
    if arguments.results.exists():
        lines = arguments.results.read_text(encoding="utf-8").splitlines()
        done = {json.loads(line)["seed"] for line in lines}
    for seed in range(arguments.first, arguments.end):
        if seed in done:
            continue
        result = {"seed": seed, "format": name, **_try(seed, name)}
        with arguments.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(seed, result["state"], result.get("reason", "")[:200], flush=True)


def _raise_timeout(*_: object) -> None:
    raise TimeoutError(f"It took more than {_SECONDS} s.")


def _one_route(format_name: str, name: str) -> Any:
    """Returns a format of the first route alone: the traced program, or the running backend."""
    export_format = _FORMATS[format_name]()
    export_format.name = name
    export_format.backends = (keras.backend.backend(),)
    if export_format.writes_programs:
        export_format.write = _refuse
    return export_format


def _refuse(*_: object) -> str:
    raise NotSupportedError("the traced program alone is looked at")


def _try(seed: int, format_name: str) -> dict[str, Any]:
    """Returns the state of a model's export: `wrong` where it was verified and differs."""
    keras.utils.clear_session()
    gc.collect()
    signal.signal(signal.SIGALRM, _raise_timeout)
    signal.alarm(_SECONDS)
    started = time.monotonic()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        model = _model_that_runs(seed)
        layers = [layer.__class__.__name__ for layer in model.layers]
        try:
            exporter = Exporter(model, format_name, verbose=False)
            report = exporter.export(Path(folder) / "out")
            outcome = _look_again(model, exporter.signature, report, format_name, seed)
        except ExportError as error:
            outcome = {"state": "refused", "reason": str(error)}
        except Exception:  # noqa: BLE001 - it is what is looked for
            outcome = {"state": "crashed", "reason": traceback.format_exc()[-1500:]}
    signal.alarm(0)
    return {**outcome, "layers": layers, "seconds": round(time.monotonic() - started, 2)}


def _model_that_runs(seed: int) -> keras.Model:
    for attempt in itertools.count():
        model = random_model(seed, attempt)
        signature = NamedModel(model).signature
        with contextlib.suppress(Exception):
            for batch in make_samples(model, signature):
                call(model, signature, batch)
            return model
    raise AssertionError("unreachable")


def _look_again(
    model: keras.Model, signature: Signature, report: ExportReport, format_name: str, seed: int
) -> dict[str, Any]:
    batches, expected = compute(model, signature, fresh_batches(signature, seed))
    # A slice may leave no length of a length of 1: what the mean of nothing is, ONNX does not say.
    are_full = [all(array.size for array in outputs.values()) for outputs in expected]
    batches = list(itertools.compress(batches, are_full))
    expected = list(itertools.compress(expected, are_full))
    outcome = {"state": report.verification.state, "num_fresh": len(batches)}
    if report.verification.state != "verified":
        return {**outcome, "reason": report.verification.reason}
    try:
        received = _FORMATS[format_name.partition("_of_")[0]]().run(report.path, batches)
    except Exception as error:  # noqa: BLE001 - of whichever runtime
        return {**outcome, "state": "stops", "reason": str(error)[:1000]}
    share = difference(expected, received)
    if not batches:
        return {**outcome, "state": "not looked at", "reason": "the model takes no fresh batch"}
    if share <= tolerance(model):
        return outcome
    return {**outcome, "state": "wrong", "reason": f"differs by {share:.3g} of the largest value"}


if __name__ == "__main__":
    main()
