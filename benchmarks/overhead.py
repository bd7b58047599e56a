"""What `Trainer.fit` costs beside the step itself.

The same steps of a small network (two hidden layers, batches of 32, Adam) are made by the bare
compiled step in a plain loop, by Keras's `model.fit` and by `Trainer.fit`, and on torch by
Lightning where it is installed, around the same Keras model. `Trainer.fit` is no slower than
`model.fit`, and within 5 % of the bare step where a step takes 20 ms or more; on torch it adds less
than Lightning.

Each backend runs in its usual compiled form, in one thread. The rivals take turns, and the numbers
are medians of process time, of runs of many steps. Prints a table and writes the numbers as JSON:

    python benchmarks/overhead.py [--rounds 5] [--json RESULT.json] [--quick]
"""

import sys

from processes import find_backends, make_parser, measure, write_json

SIZES = {"small": {"width": 256, "num_steps": 300}, "large": {"width": 2560, "num_steps": 60}}
BARE, KERAS, OURS, LIGHTNING = "bare step", "model.fit", "Trainer.fit", "Lightning"


def main() -> int:
    arguments = make_parser(__doc__).parse_args()
    columns = "".join(f"{name:>10}" for name in ("step", "added", "by bare", "by fit"))
    print(f"{'ms a step':11}{'size':8}{'':14}{columns}")
    results, claims = {}, []
    for backend in find_backends():
        for size, usual in SIZES.items():
            setting = {"width": 16, "num_steps": 8} if arguments.quick else usual
            result = measure(
                backend, "overhead", arguments.rounds, **setting, directions=["forward"]
            )
            if result is None:
                continue
            spent = {
                name: total / setting["num_steps"]
                for name, total in result["milliseconds"]["forward"].items()
            }
            results[f"{backend} {size}"] = spent
            for name, reason in result["facts"]["skipped"].items():
                print(f"{backend:11}{size:8}{name:14}left out: {reason}")
            for name, step in spent.items():
                print(
                    f"{backend:11}{size:8}{name:14}{step:>10.3f}{step - spent[BARE]:>10.3f}"
                    f"{step / spent[BARE]:>10.2f}{step / spent[KERAS]:>10.2f}",
                    flush=True,
                )
            if not arguments.quick:
                claims += judge(f"{backend} {size}", spent)
    for claim in claims:
        print(f"{claim['where']}: {claim['claim']}: {claim['verdict']}")
    write_json(arguments.json, {"results": results, "claims": claims})
    return 0 if all(claim["verdict"] == "holds" for claim in claims) else 1


def judge(where: str, spent: dict[str, float]) -> list[dict[str, str]]:
    """Returns the claims at a size, and whether they hold."""
    holds = {f"no slower than {KERAS}": spent[OURS] <= 1.02 * spent[KERAS]}
    if spent[BARE] >= 20:  # noqa: PLR2004 - milliseconds
        holds["within 5 % of the bare step"] = spent[OURS] <= 1.05 * spent[BARE]
    if LIGHTNING in spent:
        holds["adds less than Lightning"] = spent[OURS] <= spent[LIGHTNING]
    return [
        {"where": where, "claim": claim, "verdict": "holds" if is_met else "DOES NOT HOLD"}
        for claim, is_met in holds.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
