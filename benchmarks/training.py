"""What a pretraining of BERT's shape on masked text costs, against those that people run.

Real paragraphs of 7 to 128 tokens, a vocabulary of 30,522, hidden states of 768 and 12 heads. Every
rival goes once through the same documents, so that all train on the same tokens and predict the
same masked ones; AdamW, a clip by the global norm and dropout are the same.

- torch, bfloat16: `Trainer` with `LengthBuckets` or packed rows, and the head on masked positions,
  against Hugging Face's trainer (as people run it, with length grouping, and with torch.compile),
  Lightning, Keras's `fit`, padded and packed, and the bare step. One of Hugging Face's is lent what
  `Trainer` does to the process's memory, to see what that alone is worth.
- TensorFlow and JAX, float32: against Keras's `fit`, padded and packed, and the bare compiled step;
  bfloat16 for comparison.

Each backend runs in one thread. The rivals take turns in one process for each setting; numbers are
medians of process time. Prints a table and writes the numbers as JSON:

    python benchmarks/training.py [--rounds 3] [--json RESULT.json] [--quick]
"""

import sys
from typing import Any

from processes import find_backends, make_parser, measure
from result import Figure, report

HF, GROUPED, COMPILED = "HF Trainer", "HF, grouped", "HF, grouped, compiled"
KEPT, LIGHTNING, BARE = "HF, compiled, kept memory", "Lightning", "bare step"
OURS, OURS_PACKED = "Trainer, grouped", "Trainer, packed"
KERAS_PADDED, KERAS_PACKED = "Keras fit, padded", "Keras fit, packed"

Setting = dict[str, Any]
AROUND_A_STEP = [KERAS_PACKED, BARE, OURS_PACKED]
OF_HUGGING_FACE = [HF, GROUPED, COMPILED, KEPT, OURS]


def _setting(num_layers: int, batch_size: int, num_steps: int, names: list[str]) -> Setting:
    return {
        "num_layers": num_layers,
        "batch_size": batch_size,
        "num_steps": num_steps,
        "names": names,
    }


# A process holds the models of all its rivals, a gigabyte each: hence several for one setting.
SETTINGS = {
    "torch": [
        _setting(4, 8, 12, OF_HUGGING_FACE),
        _setting(4, 32, 5, OF_HUGGING_FACE),
        _setting(12, 8, 6, [GROUPED, COMPILED, OURS]),
        _setting(4, 8, 12, AROUND_A_STEP),
        _setting(4, 8, 4, [LIGHTNING, KERAS_PADDED, OURS]),
    ],
    "tensorflow": [
        _setting(4, 8, 6, [KERAS_PADDED, OURS_PACKED]),
        _setting(4, 8, 24, AROUND_A_STEP),  # So many that the start of fit is little.
        {**_setting(4, 8, 6, [OURS_PACKED]), "half": True},
    ],
}
SETTINGS["jax"] = SETTINGS["tensorflow"]
QUICK = {"num_steps": 3, "hidden_dim": 24, "num_layers": 1, "vocabulary_size": 5_000}

TARGETS: dict[tuple[str, int, int], list[tuple[str, str, float | None]]] = {
    ("torch", 4, 8): [
        (OURS, COMPILED, 1.18),
        (OURS, HF, 2.0),
        (OURS_PACKED, KERAS_PACKED, 1.6),
        (OURS_PACKED, BARE, None),
        (OURS, LIGHTNING, None),
        (OURS, KERAS_PADDED, None),
    ],
    ("torch", 4, 32): [(OURS, COMPILED, 1.30), (OURS, HF, 2.0)],
    ("torch", 12, 8): [(OURS, COMPILED, 1.0)],
    ("tensorflow", 4, 8): [(OURS_PACKED, KERAS_PADDED, 3.0), (OURS_PACKED, BARE, 0.95)],
    ("jax", 4, 8): [(OURS_PACKED, KERAS_PADDED, 3.0), (OURS_PACKED, BARE, 0.95)],
}
"""By backend, layers and batch: how many times as fast the first is to be as the second."""


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--only", help="layers and batch size of the one setting, as in 4x32")
    arguments = parser.parse_args()
    print(f"{'':36}{'tokens/s':>9}{'ms a step':>11}{'first loss':>12}{'last':>7}")
    results, figures = [], []
    for backend in find_backends():
        for setting in SETTINGS[backend]:
            if arguments.only not in (None, f"{setting['num_layers']}x{setting['batch_size']}"):
                continue
            result = run(backend, setting, arguments.rounds, is_quick=arguments.quick)
            if result is None:
                continue
            results.append(result)
            if not arguments.quick:
                figures += judge(result)
    return report(arguments.json, figures, results)


def run(backend: str, setting: Setting, rounds: int, *, is_quick: bool) -> dict[str, Any] | None:
    """Returns what was measured in a setting, and prints it."""
    options = {**setting, **QUICK} if is_quick else dict(setting)
    precision = "bfloat16" if backend == "torch" or options.pop("half", False) else "float32"
    result = measure(
        backend,
        "training",
        rounds,
        **options,
        precision=precision,
        directions=["forward"],
        repeats=1,
    )
    if result is None:
        return None
    facts = result["facts"]
    title = f"{backend}, {precision}, {options['num_layers']} layers, batch {options['batch_size']}"
    print(f"{title}, {facts['tokens']:,} tokens")
    for name, reason in facts["skipped"].items():
        print(f"    {name:32}left out: {reason}")
    tokens_per_second = {}
    for name, milliseconds in result["milliseconds"]["forward"].items():
        tokens_per_second[name] = facts["tokens"] / milliseconds * 1e3
        a_step = milliseconds / options["num_steps"]
        losses = facts["losses"][name]
        print(
            f"    {name:32}{tokens_per_second[name]:>9.0f}{a_step:>11.0f}"
            f"{losses[0]:>12.3f}{losses[-1]:>7.3f}",
            flush=True,
        )
    return {
        "backend": backend,
        "precision": precision,
        **options,
        "tokens_per_second": tokens_per_second,
        "losses": facts["losses"],
        "versions": result["versions"],
    }


def judge(result: dict[str, Any]) -> list[Figure]:
    """Returns the figures that are claimed of a setting."""
    speeds = result["tokens_per_second"]
    backend, num_layers, batch_size = (
        result[name] for name in ("backend", "num_layers", "batch_size")
    )
    return [
        Figure(
            f"{num_layers} layers, batch {batch_size}, {rival}",
            speeds[rival],
            "tokens/s",
            backend,
            peer,
            speeds[peer],
            least,
            is_less_better=False,
        )
        for rival, peer, least in TARGETS.get((backend, num_layers, batch_size), [])
        if rival in speeds and peer in speeds
    ]


if __name__ == "__main__":
    sys.exit(main())
