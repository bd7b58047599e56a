"""What `ServingEngine` and its peers do when clients, models or the machine misbehave.

Each server has the simulated accelerator of `rivals/accelerator.py`, and each section, one file of
`behaviour/`, starts the servers one after the other and asks them the same. Ours alone has gRPC,
and is asked over it, too. A peer that is not installed is left out: `--python` names the
interpreters that have them (`pip install mosec litserve`; `torchserve torch`, and Java). The
section `day` is for ours alone.

`python benchmarks/serving_behaviour.py --python PYTHON [--only hang_up stop ...]`
"""

import os
import signal
import sys
from types import ModuleType
from typing import Any

from behaviour import bad_bytes, day, faults, hang_up, reload, slow_clients, stop
from processes import make_parser
from result import report
from server_processes import LITSERVE, MOSEC, OURS, TORCHSERVE, Rival, find_python

RIVALS = (OURS, MOSEC, LITSERVE, TORCHSERVE)
SECTIONS = {
    module.__name__.rpartition(".")[2]: module
    for module in (hang_up, stop, reload, slow_clients, bad_bytes, faults, day)
}


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--python", nargs="+", default=[sys.executable], help="interpreters with the peers"
    )
    parser.add_argument("--only", nargs="*", choices=SECTIONS, help="sections")
    parser.add_argument("--alone", action="store_true", help="without the peers")
    arguments = parser.parse_args()
    # The servers have sessions of their own: they end where this program's blocks do.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    pythons = {
        rival: find_python(arguments.python, rival)
        for rival in ([OURS] if arguments.alone else RIVALS)
    }
    rows_by_section: dict[str, Any] = {}
    for name in arguments.only or SECTIONS:
        module = SECTIONS[name]
        rows_by_section[name] = {}
        for rival, python in pythons.items():
            if python is None or (module is day and rival is not OURS):
                continue
            print(f"{name}: {rival.name}", file=sys.stderr, flush=True)
            rows_by_section[name][rival.name] = measure(module, rival, python, arguments.quick)
        print_table(module.TITLE, rows_by_section[name])
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    tables = {SECTIONS[name].TITLE: answers for name, answers in rows_by_section.items()}
    other_pythons = [python for python in pythons.values() if python and python != sys.executable]
    return report(arguments.json, pythons=other_pythons, tables=tables)


def measure(module: ModuleType, rival: Rival, python: str, is_quick: bool) -> dict[str, str]:
    """Returns what a section has found, or that the server did not start."""
    try:
        answers: dict[str, str] = module.measure(rival, python, is_quick)
    except TimeoutError as error:
        return {"": str(error)}
    return answers


def print_table(title: str, servers: dict[str, dict[str, str]]) -> None:
    rows = list(dict.fromkeys(row for cells_by_row in servers.values() for row in cells_by_row))
    print(f"\n| {title} | " + " | ".join(servers) + " |\n|" + "---|" * (len(servers) + 1))
    for row in rows:
        cells = [cells_by_row.get(row, "-") for cells_by_row in servers.values()]
        print(f"| {row} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
