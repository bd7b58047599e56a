"""The form of a benchmark's result, and the JSON file in which it is kept.

A benchmark hands its figures to `report`, which prints those that have a target and writes all of
them under `benchmarks/results/`. `write_page.py` draws docs/numbers.md from these files.
"""

import datetime as dt
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "accelerate",
    "grpcio",
    "jax",
    "keras",
    "keras-hub",
    "lightning",
    "litserve",
    "mosec",
    "numpy",
    "nvidia-pytriton",
    "onnxruntime",
    "optimum-onnx",
    "orjson",
    "tensorboard",
    "tensorflow",
    "torch",
    "torchserve",
    "transformers",
    "uvloop",
)
"""Packages whose versions are kept with a result: the backends and the peers."""


@dataclass(frozen=True)
class Figure:
    """A measured figure, with that of the best peer and its target.

    Args:
        name: string. The thing that was measured, and its sizes.
        ours: float. The figure, in `unit`.
        unit: string. Such as `"ms"`.
        backend: string. Defaults to `""`: none, or all.
        peer: string. The peer that took turns with ours. Defaults to `""`.
        theirs: float. The peer's figure, in `unit`. Defaults to `None`.
        target: float. With a peer, the least `advantage`; without one, the limit of `ours`.
            Defaults to `None`.
        is_less_better: boolean. True for times and bytes, False for rates. Defaults to `True`.
    """

    name: str
    ours: float
    unit: str
    backend: str = ""
    peer: str = ""
    theirs: float | None = None
    target: float | None = None
    is_less_better: bool = True

    @property
    def title(self) -> str:
        """The backend, if the figure is of one, and the name."""
        return f"{self.backend}, {self.name}" if self.backend else self.name

    @property
    def advantage(self) -> float | None:
        """How many times as good ours is as the peer's: below 1, the peer is ahead."""
        if self.theirs is None:
            return None
        larger, smaller = (
            (self.theirs, self.ours) if self.is_less_better else (self.ours, self.theirs)
        )
        return larger / smaller if smaller else float("inf")

    @property
    def holds(self) -> bool:
        """True if the target is reached, or there is none."""
        if self.target is None:
            return True
        if self.advantage is not None:
            return self.advantage >= self.target
        return self.ours <= self.target if self.is_less_better else self.ours >= self.target

    def __str__(self) -> str:
        text = f"{self.title}: {self.ours:.4g} {self.unit}"
        if self.advantage is not None:
            text += f", {self.advantage:.2f} times as good as {self.peer} ({self.theirs:.4g})"
        if self.target is not None:
            text += f"; target {self.target:g}: {'holds' if self.holds else 'DOES NOT HOLD'}"
        return text


def report(
    path: Path | None,
    figures: Sequence[Figure] = (),
    details: Any = None,
    pythons: Sequence[str] = (),
    tables: dict[str, dict[str, dict[str, str]]] | None = None,
) -> int:
    """Prints the figures that have a target, and writes the result where a path is given.

    Args:
        path: `Path`. The JSON file, or `None`.
        figures: sequence of `Figure`. Defaults to `()`.
        details: The numbers behind the figures, as JSON. Defaults to `None`.
        pythons: sequence of strings. Other interpreters that ran peers. Defaults to `()`.
        tables: dict. Results in words: by title, column and row. Defaults to `None`.

    Returns:
        The exit status: 0 if every target is reached, else 1.
    """
    for figure in figures:
        if figure.target is not None:
            print(figure, flush=True)
    if path is not None:
        result = {
            "benchmark": Path(sys.argv[0]).stem,
            "command": _read_command(),
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "machine": _read_machine(),
            "versions": _read_versions(pythons),
            "figures": [asdict(figure) for figure in figures],
            "tables": tables or {},
            "details": details,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(write_json(result), encoding="utf-8")
    return 0 if all(figure.holds for figure in figures) else 1


def count(number: int, noun: str) -> str:
    """Returns a number with its noun, as in `"1 token"` and `"4,096 tokens"`."""
    return f"{number:,} {noun}{'s' * (number > 1)}"


def write_json(result: dict[str, Any]) -> str:
    """Returns a result as JSON, with a line for each key and each figure."""
    lines = {key: json.dumps(value) for key, value in result.items()}
    figures = ",\n  ".join(map(json.dumps, result["figures"]))
    lines["figures"] = f"[\n  {figures}\n ]" if figures else "[]"
    return "{\n " + ",\n ".join(f'"{key}": {text}' for key, text in lines.items()) + "\n}\n"


def _read_command() -> str:
    """Returns the command line without folders of this machine, and without the output."""
    arguments = [
        Path(argument).name if os.sep in argument else argument for argument in sys.argv[1:]
    ]
    if "--json" in arguments:
        index = arguments.index("--json")
        del arguments[index : index + 2]
    backend = os.environ.get("KERAS_BACKEND")
    prefix = [f"KERAS_BACKEND={backend}"] if backend else []
    processes = os.environ.get("WORLD_SIZE")
    start = f"keras-deepseek launch --nproc {processes}" if processes else "python"
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    return " ".join([*prefix, start, script, *map(shlex.quote, arguments)])


def _read_machine() -> dict[str, Any]:
    """Returns the processor, its cores and the memory."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = models[0] if models else processor
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _read_versions(pythons: Sequence[str]) -> dict[str, str]:
    """Returns the versions of the known packages, in this interpreter and in others."""
    installed = {
        distribution.name.lower(): distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.name
    }
    versions = {name: installed[name] for name in PACKAGES if name in installed}
    script = (
        "import importlib.metadata, json\n"
        "print(json.dumps({x.name.lower(): x.version for x in importlib.metadata.distributions()}))"
    )
    for python in pythons:
        done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
        package_versions = json.loads(done.stdout)
        versions |= {
            name: package_versions[name]
            for name in PACKAGES
            if name in package_versions and name not in versions
        }
    return dict(sorted(versions.items()))
