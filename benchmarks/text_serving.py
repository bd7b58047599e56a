"""How many tokens a second a served language model writes, and how long its users wait.

The DeepSeek-V3 of `decoding.py`, float32, on the CPU: `ServingEngine` on each backend beside the
continuous batching of `transformers`, which gets the same weights. Each is a process of its own in
one thread, and they take turns. Prompts have 64 to 512 tokens and answers 8 to 256, all greedy;
eight answers at most are written at once. What is claimed, for requests that come at once and as a
Poisson process:

- at least 1.8 times the tokens a second of `transformers`, where all come at once;
- shorter times to the first token and between two tokens, at the 99th percentile;
- at least 0.92 of the tokens a second of our own `generate`, in full batches of equal lengths.

The clock is the processor time of each process, which jumps over idle time. `transformers` 5.24
can't batch DeepSeek-V3 continuously: `rivals/text_serving_transformers.py` patches it. With
`--llama`, a Llama of the same size stands beside it without a patch, and in vLLM's build for CPUs.
Prints a table and writes the medians of all rounds as JSON:

    python benchmarks/text_serving.py [--rounds 3] [--json RESULT.json] [--quick] [--python PYTHON]
        [--vllm PYTHON]

`--python` is the Python that has `transformers` and `torch`. Without `--vllm` vLLM is left out.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from decoding import CONFIG, PEER, QUICK_CONFIG, Worker
from processes import find_backends, make_parser
from result import Figure, report

Numbers = dict[str, float]
NUM_ROWS = 8
MAX_LENGTH = 768
LLAMA = "Llama, "
LLAMA_CONFIG = {
    "vocab_size": 14336,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
QUICK_LLAMA_CONFIG = {
    **LLAMA_CONFIG,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
AT_ONCE, POISSON, EQUAL = "at once", "Poisson", "equal lengths"
TRAFFIC: dict[str, dict[str, Any]] = {
    AT_ONCE: {},
    POISSON: {"rate": 0.6},
    EQUAL: {"prompt": [256, 256], "answer": [96, 96]},
}
QUICK_TRAFFIC: dict[str, dict[str, Any]] = {
    AT_ONCE: {"prompt": [8, 40], "answer": [4, 12]},
    POISSON: {"rate": 20, "prompt": [8, 40], "answer": [4, 12]},
    EQUAL: {"prompt": [32, 32], "answer": [8, 8]},
}
UNITS = {
    "tokens_per_second": "tokens/s",
    "first_p50": "s",
    "first_p99": "s",
    "between_p50_ms": "ms",
    "between_p99_ms": "ms",
    "cpu_ms": "ms",
}
TITLES = {
    "tokens_per_second": "tokens a second",
    "first_p50": "first token, median",
    "first_p99": "first token, 99th percentile",
    "between_p50_ms": "between tokens, median",
    "between_p99_ms": "between tokens, 99th percentile",
    "cpu_ms": "processor time of a token",
}
TARGETS = {
    (AT_ONCE, "tokens_per_second"): 1.8,
    (AT_ONCE, "first_p99"): 1.0,
    (AT_ONCE, "between_p99_ms"): 1.0,
    (POISSON, "first_p99"): 1.0,
    (POISSON, "between_p99_ms"): 1.0,
}
STATIC_TARGET = 0.92


def start_workers(folder: Path, arguments: Any) -> list[Worker]:
    """Starts the processes. The first one writes the weights."""
    sizes = [str(NUM_ROWS), str(MAX_LENGTH)]
    config = json.dumps(QUICK_CONFIG if arguments.quick else CONFIG)
    llama = json.dumps(QUICK_LLAMA_CONFIG if arguments.quick else LLAMA_CONFIG)
    paths = [str(folder / kind) for kind in ("deepseek_v3", "llama")]
    script, python = "text_serving_transformers.py", arguments.python
    workers = [Worker(PEER, script, python, "torch", paths[0], config, "deepseek_v3", sizes[0])]
    if arguments.llama:
        workers.append(
            Worker(LLAMA + PEER, script, python, "torch", paths[1], llama, "llama", sizes[0])
        )
    for worker in workers:
        ask(worker, {"number": 1, "prompt": [8, 8], "answer": [2, 3]})
    if arguments.llama and arguments.vllm:
        script = "text_serving_vllm.py"
        workers.append(Worker(LLAMA + "vLLM", script, arguments.vllm, "torch", paths[1], *sizes))
    script = "text_serving_ours.py"
    workers += [
        Worker(name, script, sys.executable, name, paths[0], *sizes) for name in find_backends()
    ]
    return workers


def ask(worker: Worker, traffic: dict[str, Any], **options: str) -> dict[str, Any]:
    """Returns what a worker measured.

    Raises:
        RuntimeError: Its process has ended.
    """
    answer: dict[str, Any] | None = worker.ask(traffic=traffic, **options)
    if answer is None:
        raise RuntimeError(f"{worker.name} failed: its error is above.")
    return answer


def measure(
    workers: list[Worker], traffics: dict[str, dict[str, Any]], rounds: int
) -> tuple[dict[str, dict[str, Numbers]], dict[str, int]]:
    """Returns the medians by traffic and worker, and how many answers differ from the first's."""
    numbers: dict[str, dict[str, list[Numbers]]] = {name: {} for name in traffics}
    unequal: dict[str, int] = {}
    for number in range(rounds + 1):
        for traffic_name, traffic in traffics.items():
            tokens = None
            for worker, way in list_turns(workers, traffic_name):
                options = {} if is_peer(worker.name) else {"way": way}
                if not number:  # Warms up. All that `generate` needs is compiled.
                    short = {} if way == "generate" else {"answer": [2, 8]}
                    warm_up = {**traffic, **short, "number": NUM_ROWS, "rate": None}
                    ask(worker, warm_up, **options)
                    continue
                answer = ask(worker, {**traffic, "seed": number}, **options)
                answer_tokens = answer.pop("tokens")
                name = worker.name if way == "rows" else f"{worker.name}, {way}"
                numbers[traffic_name].setdefault(name, []).append(answer)
                print_row(traffic_name, name, answer)
                if not worker.name.startswith(LLAMA):
                    tokens = tokens or answer_tokens
                    pairs = zip(tokens, answer_tokens, strict=True)
                    unequal[name] = unequal.get(name, 0) + sum(a != b for a, b in pairs)
    medians = {
        traffic_name: {
            name: {key: statistics.median(row[key] for row in rows) for key in UNITS}
            for name, rows in by_worker.items()
        }
        for traffic_name, by_worker in numbers.items()
    }
    return medians, unequal


def is_peer(name: str) -> bool:
    """Returns True for the name of a peer's process."""
    return name == PEER or name.startswith(LLAMA)


def list_turns(workers: list[Worker], traffic_name: str) -> list[tuple[Worker, str]]:
    """Returns who answers a traffic, and how: in rows, or by `generate`, in this order."""
    if traffic_name != EQUAL:
        return [(worker, "rows") for worker in workers]
    return [
        (worker, way)
        for worker in workers
        if not is_peer(worker.name)
        for way in ("rows", "generate")
    ]


def print_row(traffic_name: str, name: str, numbers: Numbers) -> None:
    """Prints a line of the table."""
    cells = [f"{numbers[key]:>9.3g} {unit:8}" for key, unit in UNITS.items()]
    print(f"{traffic_name:14}{name:22}" + "".join(cells), flush=True)


def make_figures(medians: dict[str, dict[str, Numbers]]) -> list[Figure]:
    """Returns ours beside the peer's, and beside `generate` in batches of equal lengths."""
    figures = []
    for traffic_name, by_worker in medians.items():
        for name, ours in by_worker.items():
            peer = PEER if traffic_name != EQUAL else "generate"
            theirs = by_worker.get(PEER if peer == PEER else f"{name}, generate")
            if is_peer(name) or theirs is None:
                continue
            for key, unit in UNITS.items():
                target = TARGETS.get((traffic_name, key))
                if peer == "generate":
                    if key not in ("tokens_per_second", "cpu_ms"):
                        continue
                    target = STATIC_TARGET if key == "tokens_per_second" else None
                title = f"{traffic_name}, {TITLES[key]}"
                is_time = key != "tokens_per_second"
                figure = Figure(
                    title, ours[key], unit, name, peer, theirs[key], target, is_less_better=is_time
                )
                figures.append(figure)
    return figures


def make_tables(medians: dict[str, dict[str, Numbers]]) -> dict[str, dict[str, dict[str, str]]]:
    """Returns the tables of the Llama, which only the peers run."""
    return {
        f"A Llama of the same size, {traffic_name}": {
            name.removeprefix(LLAMA): {
                TITLES[key]: f"{numbers[key]:.3g} {unit}" for key, unit in UNITS.items()
            }
            for name, numbers in by_worker.items()
            if name.startswith(LLAMA)
        }
        for traffic_name, by_worker in medians.items()
        if any(name.startswith(LLAMA) for name in by_worker)
    }


def main() -> int:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--python", default=sys.executable, help="the Python with the peers")
    parser.add_argument("--vllm", help="the Python with vLLM")
    parser.add_argument("--llama", action="store_true", help="the peers run a Llama too")
    parser.add_argument(
        "--requests",
        type=int,
        default=32,
        help=f"at once and in a Poisson process; of equal lengths {NUM_ROWS} for each two of these",
    )
    parser.add_argument("--only", nargs="*", choices=list(TRAFFIC), help="kinds of traffic")
    arguments = parser.parse_args()
    number = NUM_ROWS if arguments.quick else arguments.requests
    traffics = {
        name: {**traffic, "number": NUM_ROWS * (number // 2) if name == EQUAL else number}
        for name, traffic in (QUICK_TRAFFIC if arguments.quick else TRAFFIC).items()
        if not arguments.only or name in arguments.only
    }
    print(f"Load of the machine: {os.getloadavg()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        workers = start_workers(Path(folder), arguments)
        medians, unequal = measure(workers, traffics, arguments.rounds)
        for worker in workers:
            worker.close()
    print(f"Load of the machine: {os.getloadavg()}")
    for name, number in unequal.items():
        print(f"{name}: {number} answers differ from the first worker's")
    details = {"traffic": traffics, "numbers": medians, "unequal": unequal}
    figures = make_figures(medians)
    return report(arguments.json, figures, details, [arguments.python], make_tables(medians))


if __name__ == "__main__":
    main()
