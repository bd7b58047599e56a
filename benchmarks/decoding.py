"""How fast the language models read a prompt and decode, on the CPU, in one thread.

A DeepSeek-V3 of 88 million parameters, float32: the same config and weights in `transformers`,
which writes the checkpoint, and here, on each backend in its compiled form. Each is a process of
its own; they take turns, one at a time. What is claimed, as ratios to `transformers` in the same
run:

- tokens a second while decoding, at batch and context: at least 1.6 (1, 512), 3.6 (1, 2048),
  7.5 (8, 512) and 19 (8, 2048);
- tokens of a prompt a second: at least 1.1 at 512 and 2 at 2,048;
- the cache takes `key_value_lora_rank + rope_head_dim` numbers a token and a layer, and one byte
  for the mask.

Beside them stands the same model with a cache of keys and values of all heads (`expanded`). Ours
are timed as a user gets them, by `model.stream`: the first token of a prompt, and the tokens behind
it. `transformers` is called in a bare loop, without its `generate`. The numbers are medians of
process time; the greedy tokens of all must be the same. Prints a table and writes the numbers as
JSON:

    python benchmarks/decoding.py [--rounds 5] [--json RESULT.json] [--quick] [--python PYTHON]

`transformers` and `torch` may be installed elsewhere: `--python` is the Python that has them.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from processes import ONE_THREAD, find_backends, make_parser
from result import Figure, report

FOLDER = Path(__file__).parent
PEER = "transformers"
CONFIG = {
    "vocab_size": 14336,
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 256,
    "q_lora_rank": 384,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 4096,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
QUICK_CONFIG = {
    **CONFIG,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
# Of batch and context: the least ratio of decoding, and of reading the prompt.
TARGETS = {
    (1, 512): (1.6, 1.1),
    (1, 2048): (3.6, 2.0),
    (8, 512): (7.5, None),
    (8, 2048): (19, None),
}
QUICK = {(1, 32): (None, None), (2, 48): (None, None)}
NEW_TOKENS = {1: 24, 8: 16}


class Worker:
    """A process that measures what it is asked for, one question a line.

    Args:
        name: string. What it is called in the table.
        script: string. What it runs, in `rivals/`.
        python: string. The Python that runs it.
        backend: string. Keras's.
        arguments: Those of the script.
    """

    def __init__(self, name: str, script: str, python: str, backend: str, *arguments: str) -> None:
        self.name = name
        paths = [str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            **ONE_THREAD,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        self._process = subprocess.Popen(
            [python, str(FOLDER / "rivals" / script), *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **question: Any) -> Any:
        """Returns the answer, or `None` where the process has ended."""
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line.startswith("{") else None

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def measure_setting(
    workers: list[Worker], batch_size: int, context: int, arguments: Any
) -> dict[str, dict[str, list[float]]]:
    """Returns seconds of a prompt and of a decoded token by worker, of each round."""
    new_tokens = 16 if arguments.quick else NEW_TOKENS[batch_size]
    question = {"batch_size": batch_size, "context": context, "new_tokens": new_tokens}
    times_by_rival: dict[str, dict[str, list[float]]] = {}
    for number in range(arguments.rounds + 1):
        # The first compiles, and PyTorch records a step only when it has come some times. It asks
        # for as many tokens: another number makes a cache of another size, and compiles again.
        for worker in workers:
            answer = worker.ask(**question, seed=number)
            if answer is None:
                continue
            if number:
                times = times_by_rival.setdefault(
                    worker.name, {"prefill": [], "decode": [], "tokens": []}
                )
                for name, value in answer.items():
                    times[name].append(value)
    return times_by_rival


def check_equal(times_by_rival: dict[str, dict[str, Any]]) -> int:
    """Returns in how many rounds some of the greedy tokens were not those of `transformers`."""
    peer = times_by_rival[PEER]["tokens"]
    return sum(
        any(times["tokens"][number] != tokens for times in times_by_rival.values())
        for number, tokens in enumerate(peer)
    )


def judge(rows: list[dict[str, Any]], targets: tuple[float | None, float | None]) -> list[Figure]:
    """Returns the figures of ours beside those of `transformers`, at one batch and context."""
    peer = next(row for row in rows if row["name"] == PEER)
    return [
        Figure(
            f"{kind}, batch {row['batch_size']}, context {row['context']}",
            row[f"{kind}_ratio"] * peer[f"{kind}_tokens_per_second"],
            "tokens/s",
            row["name"],
            PEER,
            peer[f"{kind}_tokens_per_second"],
            least,
            is_less_better=False,
        )
        for row in rows
        if row["name"] != PEER and "expanded" not in row["name"]
        for kind, least in zip(("decode", "prefill"), targets, strict=True)
    ]


def make_rows(
    times_by_rival: dict[str, dict[str, list[float]]], batch_size: int, context: int
) -> list[dict[str, Any]]:
    """Returns tokens a second and ratios of each worker."""
    rows = []
    for name, times in times_by_rival.items():
        row: dict[str, Any] = {"name": name, "batch_size": batch_size, "context": context}
        for kind, tokens in (("prefill", batch_size * context), ("decode", batch_size)):
            row[f"{kind}_tokens_per_second"] = tokens / statistics.median(times[kind])
            ratios = [
                peer / ours
                for peer, ours in zip(times_by_rival[PEER][kind], times[kind], strict=True)
            ]
            row[f"{kind}_ratio"] = statistics.median(ratios)
            row[f"{kind}_seconds"] = times[kind]
        rows.append(row)
    return rows


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--python", default=sys.executable, help="the Python with transformers")
    parser.add_argument("--no-expanded", action="store_true", help="ours as they are, alone")
    arguments = parser.parse_args()
    config = QUICK_CONFIG if arguments.quick else CONFIG
    numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    expected = config["num_hidden_layers"] * (4 * numbers + 1)
    print(f"Load of the machine: {os.getloadavg()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            Worker(
                PEER,
                "decoding_transformers.py",
                arguments.python,
                "torch",
                folder,
                json.dumps(config),
            )
        ]
        parameters = workers[0].ask(what="parameters")
        ways = ["latent"] if arguments.no_expanded else ["latent", "expanded"]
        workers += [
            Worker(
                name if way == "latent" else f"{name}, expanded",
                "decoding_ours.py",
                sys.executable,
                name,
                folder,
                way,
            )
            for name in find_backends()
            for way in ways
        ]
        facts = {worker.name: worker.ask(what="facts") for worker in workers[1:]}
        print(f"{parameters}; cache, bytes a token: {expected} by the formula, {facts}")
        header = f"{'':24}{'batch':>6}{'context':>8}{'prefill/s':>11}{'ratio':>7}"
        print(f"{header}{'decode/s':>11}{'ratio':>7}", flush=True)
        rows: list[dict[str, Any]] = []
        figures = [
            Figure("a cached token", fact["cache_bytes_per_token"], "bytes", name, target=expected)
            for name, fact in facts.items()
            if fact and "expanded" not in name
        ]
        for (batch_size, context), targets in (QUICK if arguments.quick else TARGETS).items():
            times_by_rival = measure_setting(workers, batch_size, context, arguments)
            unequal = check_equal(times_by_rival)
            measured = make_rows(times_by_rival, batch_size, context)
            for row in measured:
                print_row(row)
            rows += measured
            figures += judge(measured, targets)
            if unequal:
                print(f"  in {unequal} rounds of {arguments.rounds} some tokens were others")
        for worker in workers:
            worker.close()
    print(f"Load of the machine: {os.getloadavg()}")
    details = {"config": config, "facts": facts, "rows": rows, **parameters}
    return report(arguments.json, figures, details, [arguments.python])


def print_row(row: dict[str, Any]) -> None:
    """Prints a line of the table."""
    print(
        f"{row['name']:24}{row['batch_size']:>6}{row['context']:>8}"
        f"{row['prefill_tokens_per_second']:>11.1f}{row['prefill_ratio']:>7.2f}"
        f"{row['decode_tokens_per_second']:>11.1f}{row['decode_ratio']:>7.2f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
