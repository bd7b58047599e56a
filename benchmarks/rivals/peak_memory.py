"""What a process held at the most while it made some steps, as Linux counts it, and their time."""

import gc
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def measure_peak(
    make_step: Callable[[], Callable[[], Any]], runs: int, *, counts_model: bool
) -> dict[str, float]:
    """Returns the megabytes at the peak, and the median of the steps' seconds of process time.

    Args:
        make_step: Function that makes the model, and returns a function that makes a step.
        runs: integer. The steps that are timed, after one that compiles.
        counts_model: boolean. Whether what `make_step` leaves behind counts, or a step's own alone.
    """
    gc.collect()
    start_megabytes = read_status("VmRSS")
    step = make_step()
    if not counts_model:
        gc.collect()
        start_megabytes = read_status("VmRSS")
    step()  # Compiles. What it leaves behind counts: TensorFlow keeps its memory for the next step.
    restart_peak()
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return {
        "megabytes": read_status("VmHWM") - start_megabytes,
        "seconds": statistics.median(seconds),
    }


def restart_peak() -> None:
    """Has Linux count the peak of this process anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def read_status(name: str) -> float:
    """Returns a figure that Linux has on this process, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kibibytes,) = re.findall(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    return int(kibibytes) / 1024
