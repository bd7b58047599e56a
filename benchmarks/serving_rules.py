"""How long requests take by the rule that learns when to wait, and by fixed waits.

The real queue before a simulated accelerator, 4 + 0.25 n ms for a batch of n up to 32 rows: what
is measured is the rule, without the machine. `python benchmarks/serving_rules.py [--json FILE]`
"""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

from processes import make_parser
from result import Figure, report

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.oracles.queue_simulation import (
    Outcome,
    bursts,
    make_queue,
    poisson,
    returning,
    seconds_of,
    simulate,
)

CEILING = 32 / seconds_of(32)
WAITS = (0.0, 0.001, 0.002, 0.005, 0.010)
SECONDS = 20.0

Run = Callable[[float | None], Outcome]


def closed_loop(num_clients: int) -> Run:
    """Returns the run of clients that wait for their answers."""
    return lambda wait: simulate(
        make_queue(wait), num_clients=num_clients, think=returning(), seconds=SECONDS
    )


def independent(load: float) -> Run:
    """Returns the run of requests that know nothing of each other."""
    return lambda wait: simulate(
        make_queue(wait), poisson(load * CEILING, SECONDS), seconds=SECONDS
    )


def in_bursts(load: float, rows: int, spread: float) -> Run:
    """Returns the run of requests that come in bursts."""
    return lambda wait: simulate(
        make_queue(wait), bursts(load * CEILING, rows, spread, SECONDS), seconds=SECONDS
    )


def main() -> int:
    arguments = make_parser(__doc__, has_quick=False, rounds=None).parse_args()
    runs: dict[str, Run] = {
        **{
            f"{count} client{'s' * (count > 1)}": closed_loop(count)
            for count in (1, 8, 16, 32, 48, 64)
        },
        **{f"Poisson, load {load}": independent(load) for load in (0.1, 0.3, 0.5, 0.7, 0.9)},
        **{
            f"bursts of {rows} in {spread * 1000:.0f} ms, load {load}": in_bursts(
                load, rows, spread
            )
            for (rows, spread), load in itertools.product(
                [(8, 0.001), (24, 0.003)], [0.1, 0.3, 0.5]
            )
        },
    }
    outcomes_by_load: dict[str, dict[str, dict[str, float]]] = {}
    titles = ["learned", *(f"{wait * 1000:.0f} ms" for wait in WAITS)]
    print("| | " + " | ".join(titles) + " |\n|" + "---|" * (len(titles) + 1))
    for name, run in runs.items():
        outcomes = dict(zip(titles, [run(None), *map(run, WAITS)], strict=True))
        cells = [
            f"{1000 * outcome.mean:.1f} ± {1000 * outcome.deviation:.1f}"
            for outcome in outcomes.values()
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        outcomes_by_load[name] = {
            title: {
                "requests_per_second": outcome.rate,
                "mean_seconds": outcome.mean,
                "deviation_seconds": outcome.deviation,
                "p99_seconds": outcome.quantile(0.99),
                "rows_per_batch": outcome.mean_rows,
            }
            for title, outcome in outcomes.items()
        }
    figures = [
        Figure(
            f"mean time of a request, {name}",
            1000 * outcomes[titles[0]]["mean_seconds"],
            "ms",
            peer=f"the best fixed wait, {best}",
            theirs=1000 * outcomes[best]["mean_seconds"],
        )
        for name, outcomes in outcomes_by_load.items()
        for best in [min(titles[1:], key=lambda title: outcomes[title]["mean_seconds"])]
    ]
    return report(arguments.json, figures, outcomes_by_load)


if __name__ == "__main__":
    sys.exit(main())
