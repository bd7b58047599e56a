"""What starts the processes that measure: one backend in each, in one thread, on one setting.

The scripts beside this file ask here for numbers, and print and judge them; `rivals/` is what runs.
A fresh process for each setting leaves nothing behind for the next, no memory and no compilation.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BACKENDS = ("tensorflow", "jax", "torch")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=1",
}
RETURN_LARGE_BLOCKS = {
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**20),
}
"""Variables of a process whose malloc hands large blocks back at once: it holds what it uses."""
_FOLDER = Path(__file__).parent


def make_parser(
    description: str | None, *, has_quick: bool = True, rounds: int | None = 5
) -> argparse.ArgumentParser:
    """Returns a parser of the arguments that the scripts share.

    Args:
        description: string. The docstring of the script.
        has_quick: boolean. False leaves out `--quick`. Defaults to `True`.
        rounds: integer. The default of `--rounds`; `None` leaves it out. Defaults to `5`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if has_quick:
        parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    if rounds is not None:
        text = f"measurements of each, default {rounds}"
        parser.add_argument("--rounds", type=int, default=rounds, help=text)
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser


def find_backends() -> list[str]:
    """Returns the backend that `KERAS_BACKEND` names, or else all that are installed."""
    named = os.environ.get("KERAS_BACKEND")
    return [named] if named else [name for name in BACKENDS if importlib.util.find_spec(name)]


def measure(backend: str, rivals: str, rounds: int, **setting: Any) -> Any:
    """Returns what `rivals/measure.py` measures in a process of its own, or `None` if it fails."""
    return run_script("measure.py", backend, rivals, str(rounds), json.dumps(setting))


def run_script(
    name: str, backend: str, *arguments: str, python: str = sys.executable, **variables: str
) -> Any:
    """Returns what a script of `rivals/` prints last, as JSON, or `None` if it fails.

    Args:
        name: string. The script.
        backend: string. The backend of its process, which has one thread.
        *arguments: Those of the script.
        python: string. The Python that runs it. Defaults to the running one.
        **variables: Further environment variables.
    """
    paths = [str(_FOLDER.parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        **ONE_THREAD,
        **variables,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    command = [python, str(_FOLDER / "rivals" / name), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        last = result.stderr.strip().splitlines()[-1:]
        print(f"{backend}, {arguments}: failed with {result.returncode}: {last}", flush=True)
        return None
    return json.loads(result.stdout.splitlines()[-1])
