"""The operator on a real API server amid faults: kills, conflicts, and watches that fail.

A `Proxy` between the two makes the faults, and counts the requests: nothing may loop.
"""

import json
import signal
import time
import urllib.request

import pytest

from cluster_tests.cluster import (
    CRD,
    apply_definitions,
    free_port,
    stand_in_definition,
    wait_for,
)
from cluster_tests.objects import (
    KINDS,
    SCALING,
    apply_many,
    replicas,
    simulate_autoscaler,
    simulate_deployment,
    simulate_deployments,
    versions,
)

KEDA = stand_in_definition("keda.sh", "v1alpha1", "ScaledObject")
HTTP_ROUTE = stand_in_definition("gateway.networking.k8s.io", "v1", "HTTPRoute")
OBJECTS = "/apis/deepseek.io/v1/modeldeployments"


def wait_for_children(kubectl, name, kinds=KINDS):
    for kind in kinds:
        wait_for(lambda kind=kind: kubectl.get(kind, name), f"{kind} {name}")


def make_ready(kubectl, name):
    """Waits for an object without autoscaling, and simulates its pods."""
    wait_for_children(kubectl, name, ("poddisruptionbudgets",))
    simulate_deployment(kubectl, name)
    wait_for(lambda: kubectl.condition(name).get("status") == "True", "ready")


def specs(kubectl, name):
    """Returns what the children ask for, without their name."""
    children = {kind: kubectl.get(kind, name) for kind in KINDS}
    text = {kind: child and json.dumps(child["spec"]) for kind, child in children.items()}
    return {
        kind: content
        and json.loads(content.replace(f'"{name}"', '"it"').replace(f"/{name}", "/it"))
        for kind, content in text.items()
    }


def without_addresses(spec_by_kind):
    """Leaves out the addresses that an API server gives a Service."""
    return {
        kind: {k: v for k, v in spec.items() if "IP" not in k}
        for kind, spec in spec_by_kind.items()
    }


def test_restart_adopts_and_writes_nothing(kubectl, start):
    operator = start()
    kubectl.apply("digits", replicas=2, autoscaling=SCALING)
    wait_for(lambda: kubectl.get("poddisruptionbudgets", "digits"), "all children")
    simulate_deployment(kubectl, "digits")
    wait_for(lambda: kubectl.condition("digits").get("status") == "True", "ready")
    operator.stop(signal.SIGKILL)
    old_versions = versions(kubectl, "digits")
    start()
    kubectl.apply("other", replicas=1)
    wait_for(lambda: replicas(kubectl, "other"), "the new operator works")
    time.sleep(2)
    new_versions = versions(kubectl, "digits")
    # The stand-in for the API server writes an applied autoscaler each time (see its README).
    assert {k: v for k, v in new_versions.items() if k != "horizontalpodautoscalers"} == {
        k: v for k, v in old_versions.items() if k != "horizontalpodautoscalers"
    }


class TestKilledAfterAWrite:
    """The operator, killed after each write of a plan and started again."""

    @pytest.fixture
    def start_until(self, start, proxy):
        """Returns a function that starts an operator, to be killed after a number of writes."""

        def start_until(number):
            operator = start(config=proxy.config)
            num_writes = proxy.count()["writes"]

            def kill(count):
                if count == num_writes + number:
                    operator.process.kill()

            proxy.after_write = kill
            return operator

        return start_until

    @pytest.mark.parametrize("number", range(1, 7))
    def test_creation(self, kubectl, start, start_until, number):
        """Service, Deployment, replicas, autoscaler, budget, status."""
        spec = {"replicas": 3, "autoscaling": SCALING}
        operator = start_until(number)
        kubectl.apply("digits", **spec)
        assert operator.process.wait(timeout=30) == -signal.SIGKILL
        start()
        wait_for_children(kubectl, "digits")
        kubectl.apply("twin", **spec)
        wait_for_children(kubectl, "twin")
        assert without_addresses(specs(kubectl, "digits")) == without_addresses(
            specs(kubectl, "twin")
        )
        assert replicas(kubectl, "digits") == 3
        wait_for(lambda: kubectl.condition("digits"), "a status")

    @pytest.mark.parametrize("number", range(1, 7))
    def test_hand_over(self, kubectl, start, start_until, number):
        """Service, Deployment, replicas, budget, the autoscaler's deletion, status."""
        first = start()
        kubectl.apply("digits", replicas=3, autoscaling=SCALING)
        wait_for_children(kubectl, "digits")
        simulate_autoscaler(kubectl, "digits", 7)
        first.stop()
        kubectl.apply("digits", replicas=3, autoscaling={**SCALING, "enabled": False})
        operator = start_until(number)
        assert operator.process.wait(timeout=30) == -signal.SIGKILL
        start()
        wait_for(lambda: not kubectl.get("horizontalpodautoscalers", "digits"), "no autoscaler")
        assert replicas(kubectl, "digits") == 7


def test_two_operators_agree(kubectl, start):
    start()
    other = start()
    kubectl.apply("digits", replicas=3)
    wait_for(lambda: kubectl.get("poddisruptionbudgets", "digits"), "all children")
    simulate_deployment(kubectl, "digits")
    wait_for(lambda: kubectl.condition("digits").get("status") == "True", "ready")
    time.sleep(2)
    old_versions = versions(kubectl, "digits")
    time.sleep(3)
    assert versions(kubectl, "digits") == old_versions
    assert replicas(kubectl, "digits") == 3
    other.stop(signal.SIGKILL)
    kubectl.apply("digits", replicas=4)
    wait_for(lambda: replicas(kubectl, "digits") == 4, "four replicas")


def test_api_server_killed_and_back(api_server, kubectl, start):
    if api_server is None:
        pytest.skip("The API server of KUBECONFIG is not ours to kill.")
    operator = start()
    kubectl.apply("digits", replicas=1)
    wait_for(lambda: replicas(kubectl, "digits"), "the operator works")
    api_server.kill()
    time.sleep(3)
    api_server.start()
    kubectl.apply("digits", replicas=4)
    wait_for(lambda: replicas(kubectl, "digits") == 4, "four replicas", 90)
    assert operator.process.poll() is None


def test_conflicts_are_tried_again(kubectl, start, proxy):
    message = "Operation cannot be fulfilled: the object has been modified"
    proxy.refuse("PATCH", "/deployments/", 409, "Conflict", message, times=3)
    start(config=proxy.config)
    kubectl.apply("digits", replicas=3)
    make_ready(kubectl, "digits")
    proxy.wait_until_quiet()
    tries = sum("/deployments/" in path for method, path, _ in proxy.requests if method == "PATCH")
    print("after 3 conflicts:", tries, "applies of the Deployment;", proxy.count())
    assert replicas(kubectl, "digits") == 3
    assert tries <= 3 + 3


def test_watches_that_are_gone(kubectl, start, proxy):
    """The API server has forgotten the version that a watch asks for: 410."""
    operator = start(config=proxy.config)
    kubectl.apply("digits", replicas=2)
    make_ready(kubectl, "digits")
    proxy.wait_until_quiet()
    num_requests = len(proxy.requests)
    proxy.gone = ["event"] * 6
    proxy.drop_watches()
    kubectl.apply("digits", replicas=4)
    wait_for(lambda: replicas(kubectl, "digits") == 4, "four replicas")
    wait_for(lambda: not proxy.gone, "all answers")
    make_ready(kubectl, "digits")
    proxy.wait_until_quiet()
    kubectl.apply("digits", replicas=5)
    wait_for(lambda: replicas(kubectl, "digits") == 5, "five replicas", 10)
    print("six watches gone:", proxy.count(num_requests))
    assert proxy.count(num_requests)["watches"] <= 30
    assert operator.process.poll() is None


def test_watches_that_are_cut_within_a_line(kubectl, start, proxy):
    operator = start(config=proxy.config)
    kubectl.apply("digits", replicas=2)
    make_ready(kubectl, "digits")
    proxy.wait_until_quiet()
    num_requests = len(proxy.requests)
    proxy.lines_to_cut = 6
    for count in (3, 4, 5, 6):
        kubectl.apply("digits", replicas=count)
        wait_for(lambda count=count: replicas(kubectl, "digits") == count, f"{count} replicas")
    wait_for(lambda: not proxy.lines_to_cut, "six cuts")
    make_ready(kubectl, "digits")
    proxy.wait_until_quiet()
    kubectl.apply("digits", replicas=7)
    wait_for(lambda: replicas(kubectl, "digits") == 7, "seven replicas", 10)
    print("six watches cut:", proxy.count(num_requests))
    assert proxy.count(num_requests)["watches"] <= 30
    assert operator.process.poll() is None


@pytest.mark.parametrize("fault", ["half a line", "410 as a status"])
def test_a_watch_that_fails_begins_anew(kubectl, start, proxy, fault):
    operator = start(config=proxy.config)
    kubectl.apply("digits", replicas=2)
    make_ready(kubectl, "digits")
    if fault == "half a line":
        proxy.cuts_cleanly, proxy.lines_to_cut = True, 1
    else:
        proxy.gone = ["status"]
        proxy.drop_watches()
    kubectl.apply("digits", replicas=3)
    wait_for(lambda: replicas(kubectl, "digits") == 3, "three replicas")
    assert operator.process.poll() is None


def test_watches_that_are_silent(kubectl, start, proxy):
    """Only the full list, each minute, finds a change and a new object."""
    proxy.is_silent = True
    operator = start(config=proxy.config)
    wait_for(lambda: proxy.count()["watches"] >= 5, "the watches")
    kubectl.apply("digits", replicas=2)
    wait_for(lambda: kubectl.get("poddisruptionbudgets", "digits"), "all children", 90)
    assert replicas(kubectl, "digits") == 2
    print("silent watches:", proxy.count())
    assert proxy.count()["watches"] <= 14
    assert operator.process.poll() is None


def test_crd_that_comes_later_and_goes_again(kubectl, start, proxy):
    kubectl("delete", "crd", "modeldeployments.deepseek.io")
    probe = f"http://127.0.0.1:{free_port()}/healthz"
    operator = start("--liveness", probe, config=proxy.config)
    missing = "The cluster has no ModelDeployment."
    try:
        wait_for(lambda: missing in operator.log.read_text(), "a line")
        time.sleep(11)
        print("11 s without the CRD:", proxy.count())
        assert operator.log.read_text().count(missing) == 1
        assert urllib.request.urlopen(probe).status == 200
    finally:
        apply_definitions(CRD)
    kubectl.apply("digits", replicas=2)
    wait_for(lambda: replicas(kubectl, "digits") == 2, "two replicas")
    kubectl("delete", "crd", "modeldeployments.deepseek.io")
    time.sleep(11)
    apply_definitions(CRD)
    kubectl.apply("again", replicas=3)
    wait_for(lambda: replicas(kubectl, "again") == 3, "three replicas")
    assert operator.stop() == 0


def test_optional_kinds_that_come_later(kubectl, start, proxy):
    for definition in (KEDA, HTTP_ROUTE):
        kubectl("delete", "crd", definition["metadata"]["name"], "--ignore-not-found")
    start(config=proxy.config)
    kubectl.apply("scaled", autoscaling={**SCALING, "engine": "KEDA"})
    kubectl.apply("routed", replicas=1, route={"gateway": {"name": "public"}})
    for name in ("scaled", "routed"):
        wait_for(lambda n=name: kubectl.condition(n, "Stalled").get("status") == "True", name)
        assert kubectl.condition(name)["reason"] == "KindMissing"
    apply_definitions(KEDA, HTTP_ROUTE)
    try:
        wait_for(lambda: kubectl.get("scaledobjects", "scaled"), "a ScaledObject", 90)
        wait_for(lambda: kubectl.get("httproutes", "routed"), "an HTTPRoute", 90)
        wait_for(lambda: kubectl.condition("scaled", "Stalled")["status"] == "False", "no error")
    finally:
        kubectl("delete", "crd", KEDA["metadata"]["name"])


def test_idle_reads_do_not_grow_with_the_objects(api_server, kubectl, start, proxy):
    start(config=proxy.config)
    figures = {}
    for count in (10, 300):
        names = [f"model-{number}" for number in range(count)]
        apply_many(kubectl, names, autoscaling=SCALING)
        last = names[-1]
        wait_for(lambda last=last: kubectl.get("poddisruptionbudgets", last), "children", 120)
        proxy.wait_until_quiet(3.0)
        simulate_deployments(api_server.url, kubectl.namespace)
        proxy.wait_until_quiet(8.0)
        num_requests = len(proxy.requests)
        time.sleep(65)
        lists = proxy.requests[num_requests:].count(("GET", OBJECTS, False))
        counts = proxy.count(num_requests)
        print(f"{count} objects, 65 s idle: {counts}, of which {lists} full lists")
        assert counts["writes"] == 0
        figures[count] = counts["reads"] / lists
    assert figures[300] <= figures[10] + 5  # A watch that begins anew makes a list.


def test_drift_is_mended(kubectl, start, proxy):
    start(config=proxy.config)
    kubectl.apply("digits", replicas=3)
    wait_for(lambda: kubectl.get("poddisruptionbudgets", "digits"), "all children")
    kubectl("patch", "deployments", "digits", "--type=merge", "-p", '{"spec":{"replicas":9}}')
    wait_for(lambda: replicas(kubectl, "digits") == 3, "three replicas again")
    make_ready(kubectl, "digits")
    for kind in ("services", "poddisruptionbudgets"):
        proxy.wait_until_quiet()
        kubectl("delete", kind, "digits")
        wait_for(lambda kind=kind: kubectl.get(kind, "digits"), kind, 10)


def test_revoked_token_is_replaced_at_once(kubectl, start, proxy):
    """The watches go on, and the next request finds the new token in its file."""
    config = proxy.config.read_text()

    def use(token):
        proxy.config.write_text(config.replace("user: {}", f"user: {{token: {token}}}"))
        proxy.token = token

    use("old")
    start(config=proxy.config)
    kubectl.apply("digits", replicas=1)
    wait_for(lambda: replicas(kubectl, "digits"), "the operator works")
    use("new")
    kubectl.apply("digits", replicas=3)
    wait_for(lambda: replicas(kubectl, "digits") == 3, "three replicas", 10)
