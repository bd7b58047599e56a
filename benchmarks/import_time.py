"""Claim: `import keras_deepseek` adds under 0.1 s to Python's start.

Prints a table and writes the numbers as JSON:

    python benchmarks/import_time.py [--json RESULT.json]
"""

import platform
import statistics
import subprocess
import sys
import time

from processes import make_parser
from result import Figure, report

LIMITS = {"import keras_deepseek": 0.1, "the command's --help": None}
"""Seconds beyond Python's start."""
STATEMENTS = {
    "Python's start": "pass",
    "import keras_deepseek": "import keras_deepseek",
    "the command's --help": "from keras_deepseek.cli import main; main(['--help'])",
    "import numpy": "import numpy",
}


def measure(statement: str, runs: int) -> float:
    """Returns the median seconds of a fresh Python that runs a statement."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> int:
    arguments = make_parser(__doc__, has_quick=False, rounds=15).parse_args()
    for statement in STATEMENTS.values():  # Once unmeasured: the files are then in memory.
        subprocess.run([sys.executable, "-c", statement], check=True, stdout=subprocess.DEVNULL)
    medians = {name: measure(statement, arguments.rounds) for name, statement in STATEMENTS.items()}
    start = medians["Python's start"]
    print(
        f"{'':24}{'median':>10}{'beyond':>10}   "
        f"({arguments.rounds} runs, Python {platform.python_version()})"
    )
    for name, seconds in medians.items():
        print(f"{name:24}{seconds:>8.3f} s{seconds - start:>8.3f} s")
    figures = [
        Figure(f"{name}, beyond Python's start", medians[name] - start, "s", target=limit)
        for name, limit in LIMITS.items()
    ]
    return report(arguments.json, figures, medians)


if __name__ == "__main__":
    sys.exit(main())
