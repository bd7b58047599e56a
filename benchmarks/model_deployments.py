"""Claim: the operator's requests do not grow with the objects when nothing changes.

A number of `ModelDeployment`s with an autoscaler each, on a real API server without controllers:
the time until all have their children, the requests by which that was reached, those of two idle
minutes and of one change, and the operator's memory and processor time. Then the table of the
simulation: the part of requests that are answered, by kind of traffic and target, counted by
arrivals. Needs `KUBE_API_SERVER` (see `cluster_tests/conftest.py`), etcd and kubectl:

    python benchmarks/model_deployments.py [--objects 1000] [--json RESULT.json]
"""

import os
import re
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

from processes import make_parser
from result import Figure, report

sys.path.insert(0, str(Path(__file__).parents[1]))
from cluster_tests.cluster import CRD, ApiServer, Kubectl, Operator, apply_definitions
from cluster_tests.objects import apply_many, simulate_deployments
from keras_deepseek.operator.simulation import TRAFFIC, SimulatedDeployment, simulate

IDLE_SECONDS = 120
METRIC = {"type": "RequestsPerSecond", "target": 1000}
SPEC = {"autoscaling": {"minReplicas": 2, "maxReplicas": 10, "metrics": [METRIC]}}


def main() -> int:
    parser = make_parser(__doc__, has_quick=False, rounds=None)
    parser.add_argument("--objects", type=int, default=1000, help="default 1000")
    arguments = parser.parse_args()
    figures = simulate_traffic()
    if "KUBE_API_SERVER" in os.environ:
        figures = [*measure_cluster(arguments.objects), *figures]
    return report(arguments.json, figures)


def count_requests(server: ApiServer) -> Counter[str]:
    """Returns the requests that the API server has answered, by verb, without those of watches."""
    text = urllib.request.urlopen(f"{server.url}/metrics").read().decode()
    counts: Counter[str] = Counter()
    for labels, count in re.findall(r"^apiserver_request_total\{(.*)\} (\S+)$", text, re.MULTILINE):
        verb = re.search(r'verb="(\w+)"', labels)
        if verb and verb[1] != "WATCH" and '"/' not in labels:
            counts[verb[1]] += int(float(count))
    return counts


def wait_until_quiet(server: ApiServer, verbs: tuple[str, ...], seconds: float = 5.0) -> None:
    """Waits until the counts of some verbs stand still."""
    counts, since = count_requests(server), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.5)
        now = count_requests(server)
        if any(now[verb] != counts[verb] for verb in verbs):
            counts, since = now, time.monotonic()


def measure_process(operator: Operator) -> tuple[float, float]:
    """Returns the memory in MiB and the processor seconds of an operator."""
    folder = Path(f"/proc/{operator.process.pid}")
    pages = int((folder / "statm").read_text().split()[1])
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, seconds


def measure_cluster(objects: int) -> list[Figure]:
    """Returns the figures of an operator on an API server, and prints its requests."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = ApiServer(os.environ["KUBE_API_SERVER"], folder)
        os.environ["KUBECONFIG"] = str(server.config)
        try:
            apply_definitions(CRD)
            kubectl = Kubectl("default")
            apply_many(kubectl, [f"model-{number}" for number in range(objects)], **SPEC)
            counts, start = count_requests(server), time.monotonic()
            operator = Operator(folder / "operator.log", "--model-store", "s3://models")
            wait_until_quiet(server, ("APPLY", "PATCH"))
            converged = time.monotonic() - start - 5.0
            print(f"{objects} objects: children after {converged:.1f} s;", end=" ")
            print(dict(count_requests(server) - counts))
            memory, seconds = measure_process(operator)
            print(f"memory {memory:.0f} MiB, processor {seconds:.1f} s")
            simulate_deployments(server.url, kubectl.namespace)
            wait_until_quiet(server, ("APPLY", "PATCH", "GET"), 15.0)
            counts = count_requests(server)
            time.sleep(IDLE_SECONDS)
            idle = count_requests(server) - counts
            print(f"{IDLE_SECONDS} s idle: {dict(idle)}")
            counts = count_requests(server)
            apply_many(kubectl, ["model-0"], **SPEC, args=["--access-log"])
            wait_until_quiet(server, ("APPLY", "PATCH"), 3.0)
            change = count_requests(server) - counts
            print(f"one change: {dict(change)}")
            operator.stop()
        finally:
            server.stop()
    name = f"{objects:,} objects"
    return [
        Figure(f"{name}, time until all have their children", converged, "s"),
        Figure(f"{name}, memory", memory, "MiB"),
        Figure(f"{name}, processor time", seconds, "s"),
        Figure(f"{name}, requests of {IDLE_SECONDS} idle seconds", idle.total(), "requests"),
        Figure(f"{name}, requests of one change", change.total(), "requests"),
    ]


def simulate_traffic() -> list[Figure]:
    """Returns the share of requests that are lost, the worst of three seeds; prints the rest."""
    figures = []
    print("target of capacity |", " | ".join(TRAFFIC))
    days = {name: [make(20_000, seed) for seed in range(3)] for name, make in TRAFFIC.items()}
    rows = {
        "100 %": (SimulatedDeployment(1000, 60), 1.0),
        "71 %": (SimulatedDeployment(1000, 60), 0.71),
        "60 %": (SimulatedDeployment(1000, 60), 0.6),
        "60 %, 20 s start": (SimulatedDeployment(1000, 20, window_seconds=15), 0.6),
        "60 %, 30 s buffer": (SimulatedDeployment(1000, 60, queue_seconds=30), 0.6),
        "60 %, 120 s start": (SimulatedDeployment(1000, 120), 0.6),
        "50 %": (SimulatedDeployment(1000, 60), 0.5),
    }
    for label, (deployment, share) in rows.items():
        worst = [
            min(simulate(deployment, day, 1000 * share).success for day in of_kind)
            for of_kind in days.values()
        ]
        print(f"{label} |", " | ".join(f"{100 * success:.3f}" for success in worst))
        figures += [
            Figure(f"lost in the simulation, target {label}, {kind}", 100 * (1 - success), "%")
            for kind, success in zip(TRAFFIC, worst, strict=True)
        ]
    return figures


if __name__ == "__main__":
    sys.exit(main())
