"""Stand-ins for what a cluster adds to an API server: controllers, a kubelet and a gateway.

The pods are real `keras-deepseek serve` processes, and the gateway is a real Envoy. The Deployment
controller, the autoscaler and the endpoints are simulated, with shorter periods than Kubernetes's.
"""

import contextlib
import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

from cluster_tests.cluster import ROOT, free_port
from keras_deepseek.operator.fields import quantity_value

AUTOSCALER_SECONDS = 2.0
SCALE_DOWN_SECONDS = 8.0
ENVOY = """
node: {{id: gateway, cluster: gateway}}
static_resources:
  listeners: [{listeners}]
  clusters: [{clusters}]
"""
TYPES = "type.googleapis.com/envoy.extensions"
LISTENER = """{{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}},
 filter_chains: [{{filters: [{{name: envoy.filters.network.http_connection_manager, typed_config: {{
 "@type": {types}.filters.network.http_connection_manager.v3.HttpConnectionManager,
 stat_prefix: {name}, route_config: {{virtual_hosts: [{{name: all, domains: ["*"],
 routes: [{{match: {{prefix: "/"}}, route: {{cluster: {name}, timeout: 10s}}}}]}}]}},
 http_filters: [{{name: envoy.filters.http.router, typed_config: {{
 "@type": {types}.filters.http.router.v3.Router}}}}]}}}}]}}]}}"""
CLUSTER = """{{name: {name}, type: EDS, connect_timeout: 1s, {protocol}
 eds_cluster_config: {{eds_config: {{resource_api_version: V3, path_config_source: {{
 path: {folder}/{name}.yaml, watched_directory: {{path: {folder}}}}}}}}}}}"""
HTTP2 = """typed_extension_protocol_options: {
 envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {
 "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
 explicit_http_config: {http2_protocol_options: {}}}},"""


class Pod:
    """A pod: a real server, with the arguments of its template."""

    def __init__(self, template, model, log):
        self.template = template
        self.ports = {port: free_port() for port in ("http", "grpc", "admin")}
        (container,) = template["spec"]["containers"]
        args = list(container["args"])
        args[0] = str(model)
        args[args.index("--host") + 1] = "127.0.0.1"
        for port, number in self.ports.items():
            args[args.index(f"--{port}-port") + 1] = str(number)
        for flag in ("--cache-dir",):
            args[args.index(flag) + 1] = str(log.parent / "cache")
        with log.open("wb") as stream:
            command = [sys.executable, "-m", "keras_deepseek", "serve", *args]
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream, cwd=ROOT)

    def is_ready(self):
        with contextlib.suppress(OSError):
            return self.get("/v2/health/ready") is not None
        return False

    def get(self, path):
        url = f"http://127.0.0.1:{self.ports['admin']}{path}"
        return urllib.request.urlopen(url, timeout=1).read().decode()

    def gauge(self, name):
        """Returns the first value of a gauge, as KEDA reads it."""
        match = re.search(rf"^{name}(?:\{{.*\}})? (\S+)$", self.get("/metrics"), re.MULTILINE)
        return float(match[1]) if match else 0.0


class Cluster:
    """Runs the pods of a Deployment and of its canary, behind Envoy."""

    def __init__(self, url, namespace, name, model, folder):
        self.api = f"{url}/apis"
        self.namespace, self.name, self.model, self.folder = namespace, name, model, folder
        self.pods = {track: [] for track in (name, f"{name}-canary")}
        self.ready, self.leaving, self.past = {}, [], []
        self.written, self.synced = None, 0.0
        self.most_pods = 0
        (folder / "endpoints").mkdir()
        (folder / "cache").mkdir()
        self._write_endpoints([])
        self.ports = {"http": free_port(), "grpc": free_port()}
        self.envoy = self._start_envoy()
        self.is_lost = False
        self._pass = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def all_pods(self):
        return [pod for pods in self.pods.values() for pod in pods]

    def ready_pods(self, name=None):
        return [pod for pod in self.pods[name or self.name] if self.ready.get(pod)]

    def kill_a_pod(self):
        """Kills a ready pod, as a machine that fails."""
        self.ready_pods()[0].process.kill()

    def lose(self):
        """Kills all pods and the gateway, as a region that is lost."""
        with self._pass:
            self.is_lost = True
            self._kill_all()
            self.ready.clear()

    def come_back(self):
        """Starts the gateway again, and the pods that the API server asks for."""
        with self._pass:
            self._write_endpoints([])
            self.written = None
            self.envoy = self._start_envoy()
            self.is_lost = False

    def stop(self):
        self._end.set()
        self._thread.join()
        self._kill_all()

    def _kill_all(self):
        for process in [self.envoy, *(pod.process for pod in (*self.all_pods(), *self.leaving))]:
            process.kill()
            process.wait()

    def _run(self):
        while not self._end.wait(0.1):
            with self._pass:
                if not self.is_lost:
                    self._act()

    def _act(self):
        """Does one pass of all controllers."""
        weights = self._weights()
        for name in self.pods:
            self._reconcile(name)
        if time.monotonic() - self.synced > AUTOSCALER_SECONDS:
            self.synced = time.monotonic()
            self._autoscale(self.name)
        self._publish(weights)
        self.most_pods = max(self.most_pods, len(self.all_pods()))

    def _call(self, path, method="GET", body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/merge-patch+json"}
        request = urllib.request.Request(f"{self.api}/{path}", data, headers, method=method)
        try:
            return json.load(urllib.request.urlopen(request, timeout=5))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def _path(self, kind, name):
        return f"{kind[0]}/namespaces/{self.namespace}/{kind[1]}/{name}"

    def _weights(self):
        path = self._path(("gateway.networking.k8s.io/v1", "httproutes"), self.name)
        route = self._call(path)
        if route is None:
            return {self.name: 100}
        backends = route["spec"]["rules"][0]["backendRefs"]
        return {backend["name"]: backend["weight"] for backend in backends}

    def _reconcile(self, name):
        """Does what the Deployment controller and a kubelet do, without an unavailable pod."""
        path = self._path(("apps/v1", "deployments"), name)
        deployment = self._call(path)
        is_leaving = deployment is None or "deletionTimestamp" in deployment["metadata"]
        desired = 0 if is_leaving else deployment["spec"]["replicas"]
        template = None if is_leaving else deployment["spec"]["template"]
        pods = self.pods[name]
        for pod in list(pods):
            if pod.process.poll() is not None:
                pods.remove(pod)
                self.ready.pop(pod, None)
            else:
                self.ready[pod] = pod.is_ready()
        new = [pod for pod in pods if pod.template == template]
        old = [pod for pod in pods if pod.template != template]
        surge = math.ceil(desired / 4) if old else 0
        while len(new) < desired and len(pods) < desired + surge:
            log = self.folder / f"{name}-{time.monotonic()}.log"
            new.append(Pod(template, self.model, log))
            pods.append(new[-1])
        for pod in [*old, *new[desired:]]:
            num_ready = sum(
                1 for other_pod in pods if self.ready.get(other_pod) and other_pod is not pod
            )
            if num_ready >= desired or not self.ready.get(pod):
                self._stop(name, pod)
        if not is_leaving:
            self._write_status(path, deployment, pods, new)
        elif deployment and not any(pod.process.poll() is None for pod in (*pods, *self.leaving)):
            # What the garbage collector does after a foreground deletion.
            self._call(path, "PATCH", {"metadata": {"finalizers": None}})

    def _stop(self, name, pod):
        self.pods[name].remove(pod)
        self.ready.pop(pod, None)
        self._publish(self._weights())  # Kubernetes does both at once.
        pod.process.send_signal(signal.SIGTERM)
        self.leaving.append(pod)

    def _write_status(self, path, deployment, pods, new):
        ready = sum(1 for pod in pods if self.ready.get(pod))
        status = {"replicas": len(pods), "updatedReplicas": len([p for p in new if p in pods])}
        status |= {"readyReplicas": ready, "availableReplicas": ready}
        status |= {"observedGeneration": deployment["metadata"]["generation"]}
        if status != {key: deployment.get("status", {}).get(key) for key in status}:
            self._call(f"{path}/status", "PATCH", {"status": status})

    def _autoscale(self, name):
        """Does what the HorizontalPodAutoscaler controller does, with the pods' own gauge."""
        autoscaler = self._call(self._path(("autoscaling/v2", "horizontalpodautoscalers"), name))
        deployment = self._call(self._path(("apps/v1", "deployments"), name))
        pods = self.ready_pods(name)
        if autoscaler is None or deployment is None or not pods:
            return
        metric = autoscaler["spec"]["metrics"][0]["pods"]["target"]["averageValue"]
        target, present = float(quantity_value(metric)), deployment["spec"]["replicas"]
        total = 0.0
        for pod in pods:
            with contextlib.suppress(OSError):
                total += pod.gauge("keras_deepseek_requests_per_second")
        desired = present
        if abs(total / (target * present) - 1) > 0.1:
            desired = math.ceil(total / target)
        limits = autoscaler["spec"]["minReplicas"], autoscaler["spec"]["maxReplicas"]
        desired = max(limits[0], min(limits[1], desired))
        now = time.monotonic()
        self.past = [(at, count) for at, count in self.past if at > now - SCALE_DOWN_SECONDS]
        self.past.append((now, desired))
        desired = min(max(desired, *(count for _, count in self.past), 0), 2 * present)
        if desired != present:
            path = f"{self._path(('apps/v1', 'deployments'), name)}/scale"
            manager = "?fieldManager=kube-controller-manager"
            self._call(path + manager, "PATCH", {"spec": {"replicas": desired}})

    def _publish(self, weights):
        """Writes the endpoints of ready pods, by the weights of the route."""
        groups = [
            (weight, [pod.ports for pod in self.ready_pods(name)])
            for name, weight in weights.items()
            if weight and self.ready_pods(name)
        ]
        if groups != self.written:
            self._write_endpoints(groups)
            self.written = groups

    def _write_endpoints(self, groups):
        for protocol in ("http", "grpc"):
            localities = [
                {
                    "locality": {"zone": str(number)},
                    "load_balancing_weight": weight,
                    "lb_endpoints": [
                        {
                            "endpoint": {
                                "address": {
                                    "socket_address": {
                                        "address": "127.0.0.1",
                                        "port_value": ports[protocol],
                                    }
                                }
                            }
                        }
                        for ports in pods
                    ],
                }
                for number, (weight, pods) in enumerate(groups)
            ]
            kind = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
            resource = {"@type": kind, "cluster_name": protocol, "endpoints": localities}
            new = self.folder / f"{protocol}.new"
            new.write_text(json.dumps({"resources": [resource]}))
            new.replace(self.folder / f"endpoints/{protocol}.yaml")

    def _start_envoy(self):
        folder = self.folder / "endpoints"
        weighted = "common_lb_config: {locality_weighted_lb_config: {}},"
        listeners = [LISTENER.format(port=p, name=n, types=TYPES) for n, p in self.ports.items()]
        clusters = [
            CLUSTER.format(name="http", protocol=weighted, folder=folder),
            CLUSTER.format(name="grpc", protocol=weighted + HTTP2, folder=folder),
        ]
        config = self.folder / "envoy.yaml"
        config.write_text(
            ENVOY.format(listeners=", ".join(listeners), clusters=", ".join(clusters))
        )
        flags = ["--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]
        log = (self.folder / "envoy.log").open("wb")
        with log:
            return subprocess.Popen(["envoy", "-c", config, *flags], stdout=log, stderr=log)
