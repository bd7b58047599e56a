"""The report: Markdown to paste into `docs/hardware.md`."""

import platform
import re
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST_CELL = 400
"""Characters of a reason that the table shows; all of it stands above, where its check ended."""


@dataclass(frozen=True)
class Result:
    """How one check of one backend ended.

    Args:
        check: string.
        result: string. `"passed"`, `"FAILED"` or `"skipped"`.
        seconds: float. How long it took.
        text: string. Its figures, or the reason.
    """

    check: str
    result: str
    seconds: float
    text: str


@dataclass
class Backend:
    """What one backend's processes said.

    Args:
        name: string.
        facts: dict. The framework and the device, or empty.
        no_device: string. Why it has none, or empty.
        results: list of `Result`.
    """

    name: str
    facts: dict[str, str] = field(default_factory=dict)
    no_device: str = ""
    results: list[Result] = field(default_factory=list)

    def count(self, result: str) -> int:
        """Returns how many checks ended so."""
        return sum(entry.result == result for entry in self.results)


def write_report(backends: list[Backend], device: str, seconds: float) -> str:
    """Returns the report on all backends."""
    ran = [backend for backend in backends if backend.facts]
    lines = [f"### {', '.join(list_gpus()) or 'GPU unknown'}, {datetime.now(UTC):%Y-%m-%d}"]
    if device == "cpu":
        lines = ["### Dry run on a CPU: nothing here was run on a GPU"]
    keras = next((backend.facts["keras"] for backend in ran), "not loaded")
    python = f"Python {platform.python_version()}, {platform.system()}"
    lines += [
        "",
        f"keras_deepseek {_package_version()}{_commit()}, Keras {keras}, {python}; {seconds:.0f} s",
        "",
        "| backend | framework | device | passed | failed | skipped |",
        "|---|---|---|---|---|---|",
    ]
    for backend in backends:
        why = (
            f"no {device.upper()}: {backend.no_device}" if backend.no_device else "it did not start"
        )
        facts = backend.facts or {"framework": "", "device": why}
        counts = [str(backend.count(result)) for result in ("passed", "FAILED", "skipped")]
        lines.append(_row(backend.name, facts["framework"], facts["device"], *counts))
    lines += [
        "",
        "| backend | check | result | seconds | figure or reason |",
        "|---|---|---|---|---|",
    ]
    for backend in backends:
        lines += [
            _row(backend.name, result.check, result.result, f"{result.seconds:.1f}", result.text)
            for result in backend.results
        ]
    return "\n".join(lines)


def list_gpus() -> list[str]:
    """Returns the machine's GPUs, each with its memory and its driver, as `nvidia-smi` has them."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version"]
    gpus = _output([*query, "--format=csv,noheader"])
    return [line.replace(", ", " (", 1).replace(", ", ", driver ") + ")" for line in gpus]


def _package_version() -> str:
    text = (ROOT / "keras_deepseek" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'__version__ = "(.+)"', text)
    return match[1] if match else "of an unknown release"


def _commit() -> str:
    revision = _output(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    return f" at {revision[0]}" if revision else ""


def _output(command: list[str]) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def _row(*cells: str) -> str:
    escaped = (" ".join(cell.split()).replace("|", "/") for cell in cells)
    cut = (cell if len(cell) <= LONGEST_CELL else f"{cell[:LONGEST_CELL]} ..." for cell in escaped)
    return f"| {' | '.join(cut)} |"
