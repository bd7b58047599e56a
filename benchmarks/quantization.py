"""What int8 and int4 weights save of a mixture of experts: weights, a step of LoRA, and decoding.

A DeepSeek-V3 of 107 million parameters, of which experts hold 94 % (97 % of the release's). Claims,
beside the same model in float32:

- the bytes of all weights are at most .30 (int8) and .18 (int4) of those of float32;
- the peak of a step that trains a LoRA is at most .35. It is what the process held at the most in
  its steps, less what it held after the step of a small model, as Linux counts it. The LoRA is on
  all layers, of rank 1: about .6 % of the weights, as rank 8 has .5 % of the release's;
- one row of text is decoded in int8 in no more processor time than in float32. The models take
  turns in one process, in one thread.

    python benchmarks/quantization.py [--rounds 5] [--json RESULT.json] [--quick]
"""

import json
import statistics
import sys
from typing import Any

from processes import RETURN_LARGE_BLOCKS, find_backends, make_parser, run_script
from result import Figure, report

FULL = {
    "vocabulary_size": 2048,
    "hidden_dim": 512,
    "intermediate_dim": 1024,
    "num_layers": 3,
    "num_dense_layers": 1,
    "num_heads": 8,
    "nope_head_dim": 64,
    "rope_head_dim": 32,
    "value_head_dim": 64,
    "query_lora_rank": 128,
    "key_value_lora_rank": 128,
    "num_experts": 128,
    "num_experts_per_token": 8,
    "moe_intermediate_dim": 256,
}
QUICK = {**FULL, "hidden_dim": 128, "moe_intermediate_dim": 128, "num_experts": 16}
MODES = ("int8", "int4")
LENGTH = {"prompt": 32, "new_tokens": 32, "row": 128}
MOST_WEIGHTS = {"int8": 0.30, "int4": 0.18}
MOST_PEAK = 0.35

Numbers = dict[str, Any]


def main() -> int:
    arguments = make_parser(__doc__).parse_args()
    sizes = QUICK if arguments.quick else FULL
    figures: list[Figure] = []
    details = {}
    for backend in find_backends():
        steps = {
            mode: measure("step", backend, mode, sizes, arguments.rounds)
            for mode in ("float32", *MODES)
        }
        decoding = measure("decode", backend, "all", sizes, arguments.rounds)
        details[backend] = {"steps": steps, "decoding": decoding}
        print(backend, json.dumps(details[backend]), flush=True)
        if all(steps.values()) and decoding and not arguments.quick:
            figures += judge(backend, steps, decoding["seconds"])
    print(*(figure for figure in figures if figure.target is None), sep="\n")
    return report(arguments.json, figures, {"sizes": sizes, **details})


def measure(kind: str, backend: str, mode: str, sizes: Numbers, rounds: int) -> Numbers:
    """Returns the numbers of a process; none where it failed."""
    setting = {"mode": mode, "rounds": rounds, "sizes": sizes, "length": LENGTH}
    # It would also have the kernel hand out zeroed pages for the temporaries of each token.
    variables = RETURN_LARGE_BLOCKS if kind == "step" else {}
    numbers = run_script("quantization.py", backend, kind, json.dumps(setting), **variables)
    return numbers or {}


def judge(backend: str, steps: dict[str, Numbers], seconds: dict[str, list[float]]) -> list[Figure]:
    """Returns the figures of a backend, each beside float32."""
    figures = []
    plain = steps["float32"]
    speeds = {
        mode: LENGTH["new_tokens"] / statistics.median(times) for mode, times in seconds.items()
    }
    for mode in MODES:
        rows = [
            ("weights", "weight_megabytes", "MB", 1 / MOST_WEIGHTS[mode]),
            ("peak of a LoRA step", "megabytes", "MB", 1 / MOST_PEAK),
            ("a LoRA step, CPU", "seconds", "s", None),
        ]
        figures += [
            Figure(f"{name}, {mode}", steps[mode][key], unit, backend, "float32", plain[key], least)
            for name, key, unit, least in rows
        ]
        figures.append(
            Figure(
                f"decode, batch 1, {mode}",
                speeds[mode],
                "tokens/s",
                backend,
                "float32",
                speeds["float32"],
                1.0 if mode == "int8" else None,
                is_less_better=False,
            )
        )
    return figures


if __name__ == "__main__":
    sys.exit(main())
