"""What an export takes, and how fast its artifact is, beside Keras's and Optimum's.

A BERT four times: KerasHub's `BertBackbone` with random weights, exported by `Exporter` and by
Keras's own `model.export`, and the `BertModel` of transformers with these weights, exported by
Hugging Face Optimum without its optimizer and with it at O2 and O3. `--model resnet` takes the
ResNet-50 of `keras.applications` and that of transformers, `--model llama` KerasHub's and
transformers' Llama; their weights differ. Each artifact is compared with what the Keras model
gives.

- "seconds" are those of the export alone, in a process of its own that has imported the packages
  and loaded the model; "CPU" is its processor time, "warm" the median of four more exports there,
  and "MB" what the process held at the most beyond what it held before. Imports and loading are
  "before". Of ours, "verified" is the share of the time that goes into running the model and the
  artifact on batches to compare them; Optimum compares as well, on one batch, and Keras does not.
- "ms" are the processor time of a run in onnxruntime, one thread, the same options for all; the
  artifacts take turns.

Rivals take turns in rounds, each number is the median, a ratio that of the medians. Targets: our
export takes at most as much processor time as Keras's to the same format, within 2 %, and at most
1.2 times as much as Optimum's with its optimizer (2 times from JAX); our artifact takes at most as
much as Optimum's, within 2 %. Optimum pins other versions of its packages: it may have a Python of
its own. Prints a table and writes the numbers as JSON:

    python benchmarks/export.py [--model bert-base] [--rounds 5] [--optimum-python PYTHON]
        [--json RESULT.json]
"""

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

from processes import make_parser, run_script
from result import Figure, report

_SMALL = {"num_layers": 4, "hidden_dim": 256, "num_heads": 4, "vocabulary_size": 8192}
_BASE = {"num_layers": 12, "hidden_dim": 768, "num_heads": 12, "vocabulary_size": 30522}
_LLAMA = {"num_layers": 8, "hidden_dim": 512, "num_heads": 8, "vocabulary_size": 32000}
_QUICK = {"num_layers": 1, "hidden_dim": 32, "num_heads": 2, "vocabulary_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "bert": {"model": "bert", **_SMALL},
    "bert-base": {"model": "bert", **_BASE},
    "llama": {"model": "llama", **_LLAMA},
    "resnet": {"model": "resnet"},
}
SHAPES = [(1, 16), (1, 128), (8, 64)]
IMAGE_SHAPES = [(1, 224), (4, 224)]
OURS, KERAS, PLAIN, O2, O3 = "ours", "Keras", "Optimum", "Optimum O2", "Optimum O3"
OURS_SAVED, KERAS_SAVED = "ours, SavedModel", "Keras, SavedModel"
UNFUSED, NEW = "ours, not fused", "ours, opset 23"
RIVALS: dict[str, tuple[str, dict[str, Any]]] = {
    OURS: ("ours", {}),
    UNFUSED: ("ours", {"fused": False}),
    NEW: ("ours", {"opset": 23}),
    KERAS: ("keras", {"format": "onnx"}),
    PLAIN: ("optimum", {}),
    O2: ("optimum", {"optimize": "O2"}),
    O3: ("optimum", {"optimize": "O3"}),
    OURS_SAVED: ("ours", {"format": "savedmodel"}),
    KERAS_SAVED: ("keras", {"format": "tf_saved_model"}),
}
NOT_ONNX = (OURS_SAVED, KERAS_SAVED)
LEAST = 0.98
TOLERANCE = 1e-4

Numbers = dict[str, Any]


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="bert")
    parser.add_argument("--optimum-python", default=sys.executable, help="a Python with Optimum")
    arguments = parser.parse_args()
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    setting = dict(MODELS[arguments.model])
    if "hidden_dim" in setting:
        setting |= _QUICK if arguments.quick else {}
        setting["intermediate_dim"] = 4 * setting["hidden_dim"]
    with tempfile.TemporaryDirectory(prefix="export_benchmark_") as work:
        folder = Path(work)
        facts = run_script("export_models.py", backend, "make", work, json.dumps(setting))
        if facts is None:
            return 1
        print(f"{facts['parameters']:,} parameters, {setting}, {backend}")
        rows = export_all(folder, backend, arguments.optimum_python, arguments.rounds)
        compared = compare(folder, backend, setting, rows, arguments.rounds)
    show_exports(rows)
    show_latency(rows, compared)
    figures = [] if arguments.quick else judge(backend, rows, compared)
    for numbers in chain.from_iterable(rows.values()):
        del numbers["artifact"]  # A folder of this machine, as in the report.
        numbers.pop("report", None)
    details = {"setting": setting, "exports": rows, **compared}
    return report(arguments.json, figures, details, [arguments.optimum_python])


def export_all(folder: Path, backend: str, optimum: str, rounds: int) -> dict[str, list[Numbers]]:
    """Returns the numbers of each export by rival and round; a rival that fails is left out."""
    rows: dict[str, list[Numbers]] = {}
    has_optimum = _has_optimum(optimum)
    for index in range(rounds):
        for name, (kind, options) in RIVALS.items():
            if kind == "optimum" and not has_optimum:
                if not index:
                    print(f"{name}: left out, optimum-onnx is not installed for {optimum}")
                continue
            out = folder / name.replace(" ", "_")
            shutil.rmtree(out, ignore_errors=True)
            python = optimum if kind == "optimum" else sys.executable
            numbers = run_script(
                "export_models.py",
                backend,
                kind,
                str(folder),
                json.dumps(options),
                str(out),
                python=python,
                HF_HUB_OFFLINE="1",
            )
            if numbers:
                rows.setdefault(name, []).append(numbers)
    return rows


def _has_optimum(python: str) -> bool:
    if python == sys.executable:
        return importlib.util.find_spec("optimum") is not None
    command = [python, "-c", "import optimum.exporters.onnx"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def compare(
    folder: Path, backend: str, setting: Numbers, rows: dict[str, list[Numbers]], rounds: int
) -> Numbers:
    """Returns how long the artifacts run, and how far they are from KerasHub's model."""
    artifacts = {
        name: numbers[-1]["artifact"] for name, numbers in rows.items() if name not in NOT_ONNX
    }
    request = {
        **setting,
        "artifacts": artifacts,
        "shapes": SHAPES if "hidden_dim" in setting else IMAGE_SHAPES,
        "rounds": 4 * rounds,
        "tokens_a_sample": 1024,
    }
    answer = run_script("export_models.py", backend, "compare", str(folder), json.dumps(request))
    return answer or {"latency": {}, "differences": {}}


def median(rows: list[Numbers], name: str) -> float:
    """Returns the median of a number over the rounds."""
    return statistics.median(row[name] for row in rows)


def show_exports(rows: dict[str, list[Numbers]]) -> None:
    """Prints what each export took, and the ratios of its CPU seconds to those of its peer."""
    heads = ("seconds", "CPU", "by O2", "warm", "by O2", "MB", "verified", "before")
    print(f"\n{'export':20}" + "".join(f"{head:>10}" for head in heads))
    for name, numbers in rows.items():
        seconds, processor = (median(numbers, key) for key in ("seconds", "cpu_seconds"))
        warm = median(numbers, "warm_cpu_seconds")
        peer = KERAS_SAVED if name in NOT_ONNX else O2 if O2 in rows else KERAS
        ratios = ["", ""]
        if peer in rows:
            keys = {"cpu_seconds": processor, "warm_cpu_seconds": warm}
            ratios = [f"{value / median(rows[peer], key):.2f}" for key, value in keys.items()]
        share = ""
        if "verification_seconds" in numbers[0]:
            share = f"{median(numbers, 'verification_seconds') / seconds:.0%}"
        cells = [f"{seconds:.2f}", f"{processor:.2f}", ratios[0], f"{warm:.2f}", ratios[1]]
        cells += [f"{median(numbers, 'megabytes'):.0f}", share]
        cells.append(f"{median(numbers, 'import_seconds'):.2f}")
        print(f"{name:20}" + "".join(f"{cell:>10}" for cell in cells))


def show_latency(rows: dict[str, list[Numbers]], compared: Numbers) -> None:
    """Prints the milliseconds of each artifact by batch and length, and those by Optimum O2."""
    shapes = list(next(iter(compared["latency"].values()), {}))
    print(
        f"\n{'ms':20}"
        + "".join(f"{shape:>10}{'by O2':>8}" for shape in shapes)
        + f"{'differs':>10}"
    )
    peers = compared["latency"].get(O2)
    for name in rows:
        latency = compared["latency"].get(name)
        if latency is None:
            continue
        cells = ""
        for shape in shapes:
            milliseconds = latency[shape]["cpu_ms"]
            ratio = f"{milliseconds / peers[shape]['cpu_ms']:.2f}" if peers else ""
            cells += f"{milliseconds:>10.3f}{ratio:>8}"
        print(f"{name:20}{cells}{compared['differences'].get(name, float('nan')):>10.1e}")


def judge(backend: str, rows: dict[str, list[Numbers]], compared: Numbers) -> list[Figure]:
    """Returns the figures that are claimed."""
    figures, latency = [], compared["latency"]
    for name, ours, theirs, peer, least in (
        ("ONNX", OURS, KERAS, "Keras", LEAST),
        ("ONNX", OURS, O2, O2, 1 / (2 if backend == "jax" else 1.2)),
        ("SavedModel", OURS_SAVED, KERAS_SAVED, "Keras", LEAST),
    ):
        if ours in rows and theirs in rows:
            our_seconds, their_seconds = (
                median(rows[kind], "cpu_seconds") for kind in (ours, theirs)
            )
            title = f"export to {name}, processor time"
            figures.append(Figure(title, our_seconds, "s", backend, peer, their_seconds, least))
            warm = [median(rows[kind], "warm_cpu_seconds") for kind in (ours, theirs)]
            figures.append(Figure(f"{title}, warm", warm[0], "s", backend, peer, warm[1], least))
    figures += [
        Figure(
            f"a run at {shape}",
            latency[OURS][shape]["cpu_ms"],
            "ms",
            backend,
            peer,
            numbers["cpu_ms"],
            LEAST,
        )
        for peer in (O2, O3)
        for shape, numbers in latency.get(peer, {}).items()
    ]
    figures += [
        Figure(f"difference from KerasHub, {name}", difference, "", backend, target=TOLERANCE)
        for name, difference in compared["differences"].items()
    ]
    return figures


if __name__ == "__main__":
    sys.exit(main())
