"""A Kubernetes API server, kubectl and the operator, as processes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CRD = (ROOT / "kubernetes/base/crd.yaml").read_text()
CONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: test, cluster: {{server: "{url}"}}}}]
users: [{{name: test, user: {{}}}}]
contexts: [{{name: test, context: {{cluster: test, user: test}}}}]
current-context: test
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(condition, what, seconds=30):
    """Waits until a condition holds, and returns its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.1)
    pytest.fail(f"{what}: not within {seconds} s.")
    return None


def stand_in_definition(group, version, kind):
    """Returns a CRD of a kind that takes everything, for one that a cluster may lack."""
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served = {"name": version, "served": True, "storage": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "listKind": f"{kind}List"},
            "versions": [{**served, "schema": {"openAPIV3Schema": schema}}],
        },
    }


class ApiServer:
    """An API server with its etcd, which can be killed and started again."""

    def __init__(self, binary, folder):
        self.binary = binary
        self.folder = folder
        self.ports = [free_port() for _ in range(4)]
        self.url = f"http://127.0.0.1:{self.ports[3]}"
        self.etcd = f"http://127.0.0.1:{self.ports[0]}"
        peer = f"http://127.0.0.1:{self.ports[1]}"
        urls = ["--listen-client-urls", self.etcd, "--advertise-client-urls", self.etcd]
        urls += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        urls += ["--initial-cluster", f"default={peer}", "--data-dir", folder / "etcd"]
        self.processes = [self._run("etcd", *urls, "--unsafe-no-fsync")]
        self.config = folder / "config"
        self.config.write_text(CONFIG.format(url=self.url))
        self.start()

    def start(self):
        ports = ["--secure-port", str(self.ports[2]), "--plain", f"127.0.0.1:{self.ports[3]}"]
        certificates = ["--cert-dir", self.folder / "certificates"]
        self.server = self._run(self.binary, "--etcd", self.etcd, *ports, *certificates)
        wait_for(self._is_ready, "the API server is ready", 60)

    def kill(self):
        self.server.kill()
        self.server.wait()

    def stop(self):
        for process in (self.server, *self.processes):
            process.kill()
            process.wait()

    def _run(self, *command):
        with (self.folder / f"{uuid.uuid4().hex}.log").open("wb") as log:
            return subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)

    def _is_ready(self):
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.url}/readyz", timeout=1).status == 200
        return False


def apply_definitions(*definitions, config=None):
    """Applies CRDs, from files or objects, and waits until the API server has them."""
    kubectl = Kubectl("default", config)
    for definition in definitions:
        text = definition if isinstance(definition, str) else json.dumps(definition)
        (name,) = kubectl("apply", "-f", "-", "-o", "name", text=text).split()
        kubectl("wait", "--for=condition=Established", name)


class Kubectl:
    """kubectl in one namespace, with the file of a cluster, or that of `KUBECONFIG`."""

    def __init__(self, namespace, config=None):
        self.namespace = namespace
        self.config = config

    def __call__(self, *words, text=None, check=True):
        command = ["kubectl", "--namespace", self.namespace, *words]
        streams = {"input": text, "capture_output": True, "text": True}
        env = _environment(self.config)
        done = subprocess.run(command, check=False, timeout=60, env=env, **streams)
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)}: {done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def get(self, kind, name):
        """Returns an object, or `None`."""
        text = self("get", kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def apply(self, name, *, check=True, **spec):
        """Applies a `ModelDeployment`."""
        body = {"apiVersion": "deepseek.io/v1", "kind": "ModelDeployment"}
        body |= {"metadata": {"name": name}, "spec": spec}
        return self("apply", "-f", "-", text=json.dumps(body), check=check)

    def condition(self, name, kind="Ready"):
        """Returns a condition of a `ModelDeployment`, or an empty one."""
        conditions = (
            (self.get("modeldeployments", name) or {}).get("status", {}).get("conditions", [])
        )
        return next((condition for condition in conditions if condition["type"] == kind), {})


class Operator:
    """An operator process, on the cluster of a file, or of `KUBECONFIG`."""

    def __init__(self, log, *flags, config=None):
        self.log = log
        command = [sys.executable, "-m", "keras_deepseek", "operator", "run", *flags]
        with log.open("wb") as stream:
            streams = {"stdout": stream, "stderr": stream}
            env = _environment(config)
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, **streams)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


def _environment(config):
    return {**os.environ, "KUBECONFIG": str(config)} if config else None
