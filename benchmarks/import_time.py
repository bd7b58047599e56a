"""Claim: `import keras_deepseek` adds under 0.1 s to Python's start.

Prints a table and writes the numbers as JSON:

    python benchmarks/import_time.py [RESULT.json]
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 15
LIMIT_SECONDS = 0.1
STATEMENTS = {
    "Python's start": "pass",
    "import keras_deepseek": "import keras_deepseek",
    "keras-deepseek --help": "from keras_deepseek.cli import main; main(['--help'])",
    "import numpy": "import numpy",
}


def measure(statement: str) -> float:
    """Returns the median seconds of a fresh Python that runs a statement."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> int:
    for statement in STATEMENTS.values():  # Once unmeasured: the files are then in memory.
        subprocess.run([sys.executable, "-c", statement], check=True, stdout=subprocess.DEVNULL)
    medians = {name: measure(statement) for name, statement in STATEMENTS.items()}
    start = medians["Python's start"]
    print(
        f"{'':24}{'median':>10}{'beyond':>10}   ({RUNS} runs, Python {platform.python_version()})"
    )
    for name, seconds in medians.items():
        print(f"{name:24}{seconds:>8.3f} s{seconds - start:>8.3f} s")
    holds = medians["import keras_deepseek"] - start < LIMIT_SECONDS
    print(f"The claim {'holds' if holds else 'does not hold'}: under {LIMIT_SECONDS} s beyond.")
    if len(sys.argv) > 1:
        result = {"seconds": medians, "limit_seconds": LIMIT_SECONDS, "holds": holds}
        Path(sys.argv[1]).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
