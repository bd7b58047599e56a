"""What it takes to load and to save a checkpoint of 1 GB, beside `transformers`.

A decoder of Llama's shape with random weights, in one safetensors file and in shards, float32 and
bfloat16. `PresetModel` fills and writes the same model, built of layers of this package, on each
backend; `transformers` on PyTorch reads the same folder with `LlamaForCausalLM.from_pretrained` and
writes one with `save_pretrained`. Each measurement is a process of its own, in one thread, that has
imported its packages before; the two take turns in rounds, and a number is the median. The files
are in the page cache for both.

- `transformers` maps the file and reads a tensor where it is first used, as long as dtypes agree.
  So does ours on PyTorch: "read" sums each once, so that all of it has been read. On TensorFlow
  and JAX ours copies, so that it has. The figures compare what was read.
- "s" is the time by the clock, "CPU s" that of the processor. Building the model counts.
- "peak" is what the process held at the most beyond what it held before, in copies of the weights
  as the model has them: 1.0 is the weights alone, and with them the mapped pages of a file count.

    python benchmarks/checkpoints.py [--rounds 5] [--json RESULT.json] [--quick]
"""

import importlib.util
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from processes import RETURN_LARGE_BLOCKS, find_backends, make_parser, run_script
from result import Figure, report

FULL = {
    "vocabulary_size": 32_000,
    "hidden_dim": 1024,
    "intermediate_dim": 2816,
    "num_layers": 14,
    "num_heads": 16,
}
QUICK = {
    "vocabulary_size": 8_000,
    "hidden_dim": 512,
    "intermediate_dim": 1376,
    "num_layers": 4,
    "num_heads": 8,
}
FORMS = {  # The dtype of the file, that of the model, and the number of shards.
    "float32": ("float32", "float32", 1),
    "float32, 4 shards": ("float32", "float32", 4),
    "bfloat16": ("bfloat16", "bfloat16", 1),
    "bfloat16 to float32": ("bfloat16", "float32", 1),
}

Numbers = dict[str, Any]


def main() -> int:
    arguments = make_parser(__doc__).parse_args()
    sizes = QUICK if arguments.quick else FULL
    who = [("ours", backend) for backend in find_backends()]
    who += [("ours, read", backend) for name, backend in who if backend == "torch"]
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
        who += [("transformers", "torch"), ("transformers, read", "torch")]
    else:
        print("transformers: left out, it or PyTorch is not installed")
    rows: list[Numbers] = []
    heads = ("load s", "CPU s", "peak", "save s", "CPU s", "peak")
    print(f"{'':52}" + "".join(f"{head:>9}" for head in heads))
    with tempfile.TemporaryDirectory(prefix="checkpoint_benchmark_") as work:
        for form, (file_dtype, dtype, num_shards) in FORMS.items():
            folder = Path(work, "source")
            setting = {**sizes, "file_dtype": file_dtype, "dtype": dtype, "num_shards": num_shards}
            facts = run("make", "ours", who[0][1], folder, setting)
            if facts is None:
                return 1
            rows += measure_form(form, who, folder, setting, facts, arguments.rounds)
    return report(arguments.json, make_figures(rows), {"sizes": sizes, "rows": rows})


def measure_form(
    form: str,
    who: list[tuple[str, str]],
    folder: Path,
    setting: Numbers,
    facts: Numbers,
    rounds: int,
) -> list[Numbers]:
    """Returns the numbers of one form of the file, one row a reader, and prints them."""
    numbers_by_rival: dict[tuple[str, str], list[Numbers]] = {rival: [] for rival in who}
    for _ in range(rounds):
        for rival in who:
            numbers = run("measure", *rival, folder, setting)
            if numbers:
                numbers_by_rival[rival].append(numbers)
    rows = []
    for (name, backend), measured in numbers_by_rival.items():
        if not measured:
            continue
        medians = {
            kind: {
                key: statistics.median(run_numbers[kind][key] for run_numbers in measured)
                for key in numbers
            }
            for kind, numbers in measured[0].items()
        }
        rows.append({"form": form, "who": name, "backend": backend, **facts, **medians})
        show(rows[-1])
    return rows


def run(action: str, name: str, backend: str, folder: Path, setting: Numbers) -> Numbers | None:
    """Returns the numbers of a process, or `None` where it failed."""
    arguments = [action, name, str(folder), json.dumps(setting)]
    variables = {**RETURN_LARGE_BLOCKS, "HF_HUB_OFFLINE": "1"}
    numbers: Numbers | None = run_script("checkpoints.py", backend, *arguments, **variables)
    return numbers


def make_figures(rows: list[Numbers]) -> list[Figure]:
    """Returns processor time and peak of each backend beside those of `transformers`.

    Neither takes over a fiftieth of the weights to save those that are in memory.
    """
    peers = {row["form"]: row for row in rows if row["who"] == "transformers, read"}
    figures = []
    for row in rows:
        is_read = row["who"] == ("ours, read" if row["backend"] == "torch" else "ours")
        if not is_read or row["form"] not in peers:
            continue
        peer = peers[row["form"]]
        for kind, name, unit, key, scale in (
            ("load", "CPU", "s", "cpu_seconds", 1.0),
            ("load", "peak", "MB", "peak_bytes", 1e-6),
            ("save", "CPU", "s", "cpu_seconds", 1.0),
        ):
            ours, theirs = (scale * numbers[kind][key] for numbers in (row, peer))
            title = f"{kind}, {row['form']}, {name}"
            figures.append(Figure(title, ours, unit, row["backend"], "transformers", theirs))
    return figures


def show(row: Numbers) -> None:
    """Prints a row, its peaks in copies of the weights."""
    cells = []
    for kind in ("load", "save"):
        numbers = row[kind]
        copies = numbers["peak_bytes"] / row["weight_bytes"]
        cells += [f"{numbers['seconds']:.2f}", f"{numbers['cpu_seconds']:.2f}", f"{copies:.2f}"]
    title = f"{row['form']:20}{row['who']:19} {row['backend']:12}"
    print(f"{title}" + "".join(f"{cell:>9}" for cell in cells), flush=True)


if __name__ == "__main__":
    sys.exit(main())
