"""What is shipped for Prometheus, read by a real Prometheus: `apt-get install prometheus`.

It finds pods at the API server by the PodMonitor, translated as the Prometheus operator does, and
reads real `serve` processes under a known load. The pods are objects that the test writes.
"""

import contextlib
import http.client
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import yaml

from cluster_tests.cluster import ROOT, Kubectl, free_port, wait_for
from cluster_tests.load import make_model
from cluster_tests.stand_ins import Pod
from keras_deepseek.operator.scaling import METRICS

NAMESPACE = f"test-{uuid.uuid4().hex[:8]}"
EXAMPLES = ROOT / "kubernetes/examples"
DASHBOARD = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
OBJECT = """
apiVersion: deepseek.io/v1
kind: ModelDeployment
metadata: {name: digits}
spec:
  model: {uri: s3://models/digits}
  replicas: 1
  args: [--threads, "1"]
  batching: {maxBatchSize: 2, maxQueueRows: 4}
  route: {gateway: {name: public}}
  canary: {weight: 50}
"""
PREDICT = ("POST", "/v1/models/digits:predict", '{"instances": [[1, 2, 3]]}')
PROBES = [("GET", "/healthz", None), ("GET", "/v2/models/digits/ready", None)]
INPUT = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
ONE_MICROSECOND = json.dumps({"inputs": [INPUT], "parameters": {"timeout": 1}})
LATE = ("POST", "/v2/models/digits/infer", ONE_MICROSECOND)
THREE_ROWS = ("POST", PREDICT[1], '{"instances": [[1, 2, 3], [1, 2, 3], [1, 2, 3]]}')
BAD = ("POST", PREDICT[1], "no JSON")
SECONDS = 10
"""The window of the rates, and that of the gauge of `serve`."""


def scrape_config(monitor, server):
    """Returns the scrape configuration that the Prometheus operator makes of a PodMonitor."""
    spec, name = monitor["spec"], monitor["metadata"]["name"]
    assert spec["namespaceSelector"] == {"any": True}
    (endpoint,), (selected,) = spec["podMetricsEndpoints"], spec["selector"]["matchExpressions"]
    assert selected["operator"] == "Exists"

    def sanitized(label):
        return re.sub(r"[^a-zA-Z0-9_]", "_", label)

    def keep(source, regex):
        return {"action": "keep", "source_labels": [source], "regex": regex}

    def copy(source, target):
        return {"source_labels": [source], "target_label": target}

    pod = "__meta_kubernetes_pod"
    running = {"source_labels": [f"{pod}_phase"], "regex": "(Failed|Succeeded)", "action": "drop"}
    labels = [
        {**copy(f"{pod}_label_{sanitized(label)}", sanitized(label)), "regex": "(.+)"}
        for label in spec["podTargetLabels"]
    ]
    return {
        "job_name": f"podMonitor/default/{name}/0",
        "kubernetes_sd_configs": [{"role": "pod", "api_server": server}],
        "scrape_interval": endpoint["interval"],
        "relabel_configs": [
            running,
            keep(f"{pod}_labelpresent_{sanitized(selected['key'])}", "true"),
            keep(f"{pod}_container_port_name", endpoint["port"]),
            copy("__meta_kubernetes_namespace", "namespace"),
            copy(f"{pod}_container_name", "container"),
            copy(f"{pod}_name", "pod"),
            *labels,
            {"target_label": "job", "replacement": f"default/{name}"},
            {"target_label": "endpoint", "replacement": endpoint["port"]},
        ],
    }


class Prometheus:
    """A Prometheus on loopback that reads the pods each second."""

    def __init__(self, config, folder):
        file = folder / "prometheus.yaml"
        file.write_text(yaml.safe_dump(config))
        subprocess.run(["promtool", "check", "config", file], check=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "prometheus.log"
        flags = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
        flags += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(["prometheus", *flags], stdout=log, stderr=log)

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def is_ready(self):
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.url}/-/ready", timeout=1).status == 200
        return False

    def get(self, path, **parameters):
        """Returns the data of an answer of the HTTP API."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            answer = json.load(urllib.request.urlopen(url, timeout=10))
        except urllib.error.HTTPError as error:
            pytest.fail(f"{parameters}: {error.read().decode()}")
        assert not answer.get("warnings"), answer
        assert not answer.get("infos"), answer
        return answer["data"]

    def query(self, text):
        """Returns the values of a query, by their labels."""
        result = self.get("query", query=text)["result"]
        return {
            tuple(sorted(series["metric"].items())): float(series["value"][1]) for series in result
        }


def render(text):
    """Returns the objects of a file of `ModelDeployment`s, by kind and name."""
    command = [sys.executable, "-m", "keras_deepseek", "operator", "render", "-f", "-"]
    text = subprocess.run(command, check=True, input=text, capture_output=True, text=True).stdout
    return {
        (manifest["kind"], manifest["metadata"]["name"]): manifest
        for manifest in yaml.safe_load_all(text)
    }


def pod_object(name, pod, *, phase="Running", labels=None):
    """Returns the object of a pod, as a kubelet would have it."""
    (container,) = pod.template["spec"]["containers"]
    ports = [{**port, "containerPort": pod.ports[port["name"]]} for port in container["ports"]]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or pod.template["metadata"]["labels"]},
        "spec": {"containers": [{"name": "server", "image": container["image"], "ports": ports}]},
        "status": {"phase": phase, "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]},
    }


def ask(pod, calls):
    """Sends requests on one connection; returns the statuses."""
    connection = http.client.HTTPConnection("127.0.0.1", pod.ports["http"], timeout=30)
    statuses = []
    for method, path, body in calls:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        with connection.getresponse() as answer:
            answer.read()
            statuses.append(answer.status)
    connection.close()
    return statuses


def overload(pod):
    """Sends requests that are late, wrong and refused."""
    assert ask(pod, [LATE, BAD]) == [504, 400]
    with ThreadPoolExecutor(16) as threads:
        answered = list(threads.map(lambda calls: ask(pod, calls), [[THREE_ROWS] * 20] * 16))
    assert any(429 in statuses for statuses in answered)


class Load:
    """One prediction and two probes to each pod, twenty times a second."""

    def __init__(self, pods):
        self.pods = pods
        self.times = []
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        start = time.monotonic()
        while not self.is_over.wait(max(0.0, start + len(self.times) / 20 - time.monotonic())):
            for pod in self.pods:
                assert ask(pod, [PREDICT, *PROBES]) == [200, 200, 200]
            self.times.append(time.monotonic())

    def rate(self):
        """Returns the predictions per second of one pod, in the window."""
        end = self.times[-1]
        return sum(1 for moment in self.times if moment > end - SECONDS) / SECONDS


@pytest.fixture(scope="module")
def monitored(api_server, definition, tmp_path_factory):
    """Returns Prometheus, two pods and their load, after the window and some failures."""
    if not (shutil.which("prometheus") and shutil.which("promtool")):
        pytest.skip("Needs Prometheus: apt-get install prometheus.")
    if api_server is None:
        pytest.skip("The pods of a cluster of your own can't be reached.")
    folder = tmp_path_factory.mktemp("prometheus")
    monitor = yaml.safe_load((EXAMPLES / "pod-monitor.yaml").read_text())
    monitor["spec"]["podMetricsEndpoints"][0]["interval"] = "1s"
    model = make_model(folder)
    pods = {
        f"{name}-1": Pod(manifest["spec"]["template"], model, folder / f"{name}.log")
        for (kind, name), manifest in render(OBJECT).items()
        if kind == "Deployment"
    }
    prometheus = load = None
    try:
        write_pods(pods)
        config = {"scrape_configs": [scrape_config(monitor, api_server.url)]}
        prometheus = Prometheus(config, folder)
        wait_for(prometheus.is_ready, "Prometheus is ready")
        ready, arrived = "sum(keras_deepseek_ready)", "keras_deepseek_requests_arrived_total"
        wait_for(lambda: prometheus.query(ready) == {(): 2.0}, "Prometheus reads both pods", 60)
        for _ in range(2):  # A rate needs a second value.
            for pod in pods.values():
                overload(pod)
            total = sum(pod.gauge(arrived) for pod in pods.values())
            wait_for(lambda n=total: prometheus.query(f"sum({arrived})") == {(): n}, "a scrape")
        load = Load(list(pods.values()))
        wait_for(lambda: len(load.times) > 20 * SECONDS * 1.3, "the load of the window", 60)
        yield SimpleNamespace(prometheus=prometheus, pods=pods, load=load)
    finally:
        if load:
            load.is_over.set()
            load.thread.join()
        if prometheus:
            prometheus.stop()
        for pod in pods.values():
            pod.process.kill()
            pod.process.wait()


def write_pods(pods):
    """Writes the pods to the API server, and two that Prometheus has to leave out."""
    kubectl = Kubectl(NAMESPACE)
    subprocess.run(["kubectl", "create", "namespace", NAMESPACE], check=True)
    objects = [pod_object(name, pod) for name, pod in pods.items()]
    objects += [pod_object("ended", pods["digits-1"], phase="Succeeded")]
    objects += [pod_object("other", pods["digits-1"], labels={"app": "other"})]
    for manifest in objects:
        kubectl("create", "-f", "-", text=json.dumps(manifest))


def documented_queries():
    """Returns the queries of the documentation."""
    queries = []
    for page in ("operator", "serving", "serving_in_production"):
        text = (ROOT / f"docs/{page}.md").read_text().replace("\\|", "|")
        spans = re.findall(r"`([^`\n]+)`", text)
        queries += [span for span in spans if "rate(keras" in span or "/ process_" in span]
    return queries


def fill(query):
    """Returns a query of the dashboard with chosen variables."""
    chosen = {"namespace": NAMESPACE, "model": ".*", "target": "10", "__rate_interval": "5m"}
    return re.sub(r"\$(\w+)", lambda match: chosen[match[1]], query)


def test_pod_monitor_finds_the_pods(monitored):
    targets = monitored.prometheus.get("targets", state="active")["activeTargets"]
    assert [(target["health"], target["lastError"]) for target in targets] == [("up", "")] * 2
    labels = {target["labels"]["pod"]: target["labels"] for target in targets}
    assert set(labels) == set(monitored.pods)
    assert (
        labels["digits-canary-1"].items()
        >= {
            "namespace": NAMESPACE,
            "container": "server",
            "endpoint": "admin",
            "app_kubernetes_io_instance": "digits",
            "deepseek_io_track": "canary",
        }.items()
    )


def test_metrics_are_well_formed(monitored):
    for pod in monitored.pods.values():
        streams = {"input": pod.get("/metrics"), "capture_output": True, "text": True}
        done = subprocess.run(["promtool", "check", "metrics"], check=False, **streams)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_rates_are_those_of_the_load(monitored):
    rate = f"sum(rate(keras_deepseek_requests%s[{SECONDS}s]))"
    queries = {
        "predictions": rate % '_total{version!=""}',
        "with probes": rate % "_total",
        "arrivals": rate % "_arrived_total",
        "gauge": "sum(keras_deepseek_requests_per_second)",
        "dashboard": f"sum({fill(DASHBOARD['panels'][0]['targets'][0]['expr'])})",
    }
    for query in documented_queries():
        if query.startswith("sum") and "status" not in query:
            queries[query] = f"sum({query.removesuffix(' / 500')})"
    assert len(queries) >= 7
    queries = {name: re.sub(r"\[\dm\]", f"[{SECONDS}s]", text) for name, text in queries.items()}
    rates = {name: monitored.prometheus.query(query)[()] for name, query in queries.items()}
    sent = 2 * monitored.load.rate()
    print(f"Sent {sent:.1f} predictions per second, and twice as many probes. Prometheus:", rates)
    for name, value in rates.items():
        assert value == pytest.approx(3 * sent if name == "with probes" else sent, rel=0.15), name


def test_adapter_gives_autoscalers_their_metrics(monitored):
    """Asks what prometheus-adapter would ask, by its rules."""
    prometheus = monitored.prometheus
    values = yaml.safe_load((EXAMPLES / "prometheus-adapter-values.yaml").read_text())
    metrics = {}
    for rule in values["rules"]["custom"]:
        series = prometheus.get("series", **{"match[]": rule["seriesQuery"]})
        assert {label_set["namespace"] for label_set in series} == {NAMESPACE}
        labels = {
            override["resource"]: label
            for label, override in rule["resources"]["overrides"].items()
        }
        pods = f'{labels["pod"]}=~"{"|".join(monitored.pods)}"'
        query = rule["metricsQuery"].replace("<<.Series>>", series[0]["__name__"])
        query = query.replace("<<.LabelMatchers>>", f'{labels["namespace"]}="{NAMESPACE}",{pods}')
        query = query.replace("<<.GroupBy>>", labels["pod"])
        metrics[rule["name"]["as"]] = prometheus.query(query)
    assert set(metrics) == {name for name, _ in METRICS.values()}
    assert [len(values) for values in metrics.values()] == [2, 2, 2]
    for value in metrics["http_requests_per_second"].values():
        assert value == pytest.approx(monitored.load.rate(), rel=0.15)


def test_keda_reads_one_value_of_each_pod(monitored):
    objects = render((EXAMPLES / "keda.yaml").read_text())
    (trigger,) = objects["ScaledObject", "digits"]["spec"]["triggers"]
    metadata = trigger["metadata"]
    assert (metadata["format"], metadata["aggregationType"]) == ("prometheus", "sum")
    for pod in monitored.pods.values():
        text = pod.get("/metrics")
        assert len(re.findall(rf"^{metadata['valueLocation']}\b", text, re.MULTILINE)) == 1
        gauge = pod.gauge(metadata["valueLocation"])
        assert gauge == pytest.approx(monitored.load.rate(), rel=0.15)


def test_documented_queries_give_data(monitored):
    queries = documented_queries()
    assert len(queries) >= 6
    for query in queries:
        assert monitored.prometheus.query(query), query


def test_dashboard_gives_data(monitored):
    prometheus = monitored.prometheus
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()
            assert prometheus.get(f"label/{label}/values", **{"match[]": fill(series)})
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            values = prometheus.query(fill(target["expr"]))
            tracks = {dict(labels)["deepseek_io_track"] for labels in values}
            assert tracks == {"stable", "canary"}, panel["title"]
            assert all(value >= 0 for value in values.values()), panel["title"]  # Not NaN.
            assert any(values.values()) or panel["title"] == "Requests in flight", panel["title"]


def test_prometheus_warns_of_nothing(monitored):
    assert monitored.prometheus.log.read_text() == ""
