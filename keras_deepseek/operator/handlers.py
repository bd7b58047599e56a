"""The run of the operator: kopf watches the cluster, and the `Reconciler` does the rest.

kopf only watches: it puts no finalizer and no annotation on an object, so deletion never hangs.
"""

import asyncio
import logging
from typing import Any

import aiohttp
import kopf

from keras_deepseek.errors import NotSupportedError
from keras_deepseek.operator.cluster import Cluster, ClusterError
from keras_deepseek.operator.kinds import AUTOSCALER, DEPLOYMENT, MODEL_DEPLOYMENT
from keras_deepseek.operator.plan import MANAGED, Settings
from keras_deepseek.operator.reconciler import Reconciler

_LOG = logging.getLogger(__name__)
_CRD_SECONDS = 5.0


def run_operator(settings: Settings, liveness: str | None = None) -> None:
    """Runs the operator until SIGTERM or Ctrl-C.

    Args:
        settings: The settings.
        liveness: The URL to answer liveness probes at, as `http://0.0.0.0:8080/healthz`, or `None`.

    Raises:
        NotSupportedError: The API server can't be reached, or refuses the credentials.
    """
    asyncio.run(_run(settings, liveness))


async def _run(settings: Settings, liveness: str | None) -> None:
    kopf_settings = kopf.OperatorSettings()
    kopf_settings.posting.enabled = False
    kopf_settings.scanning.disabled = True  # No right to list CRDs and namespaces is needed.
    kopf_settings.watching.server_timeout = 300
    selector = ",".join(f"{key}={value}" for key, value in MANAGED.items())
    for kind in (DEPLOYMENT, AUTOSCALER):
        kopf_settings.watching.label_selectors[kind.api_version, kind.plural] = selector
    cluster = await _connect(kopf_settings)
    reconciler = Reconciler(cluster, settings)
    await _wait_for_definition(cluster)
    working = asyncio.create_task(reconciler.run())
    try:
        await kopf.operator(
            registry=_registry(reconciler, cluster),
            settings=kopf_settings,
            standalone=True,
            clusterwide=True,
            liveness_endpoint=liveness,
        )
    finally:
        working.cancel()
        await cluster.close()


def _registry(reconciler: Reconciler, cluster: Cluster) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    given: list[aiohttp.ClientSession] = []

    async def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.AiohttpSession:
        if cluster.session in given:  # The API server refused it: the token has expired.
            cluster.use(*_log_in(settings))
        given.append(cluster.session)
        return kopf.AiohttpSession(aiohttp_session=cluster.session, server=cluster.server)

    def of_deployment(*, namespace: str | None, name: str, **_: Any) -> None:
        reconciler.ask(namespace or "", name)

    def of_child(*, namespace: str | None, meta: Any, **_: Any) -> None:
        for owner in meta.get("ownerReferences", []):
            if owner["kind"] == MODEL_DEPLOYMENT.name:
                reconciler.ask(namespace or "", owner["name"])

    kopf.on.login(registry=registry)(login)
    for kind, handler in (
        (MODEL_DEPLOYMENT, of_deployment),
        (DEPLOYMENT, of_child),
        (AUTOSCALER, of_child),
    ):
        group, version = kind.api_version.split("/")
        kopf.on.event(group, version, kind.plural, registry=registry)(handler)
    return registry


async def _connect(settings: kopf.OperatorSettings) -> Cluster:
    """Returns the API server after a first request: kopf would repeat a failed login for ever."""
    try:
        cluster = Cluster(*_log_in(settings))
    except (kopf.LoginError, OSError, ValueError) as error:
        raise NotSupportedError(f"{error}. Set KUBECONFIG, or run in a cluster.") from error
    try:
        await cluster.kinds()
    except (aiohttp.ClientError, TimeoutError, ClusterError) as error:
        await cluster.close()
        raise NotSupportedError(
            f"The API server at {cluster.server} does not answer as it should: {error}"
        ) from error
    return cluster


def _log_in(settings: kopf.OperatorSettings) -> tuple[aiohttp.ClientSession, str]:
    found = kopf.login_with_service_account(settings=settings)
    found = found or kopf.login_with_kubeconfig(settings=settings)
    if found is None:
        raise kopf.LoginError("No credentials of a cluster were found")
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=found.as_ssl_context()),
        headers=found.as_http_headers(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
    )
    return session, found.server


async def _wait_for_definition(cluster: Cluster) -> None:
    """Waits for the CRD: kopf would never see one that comes after its start."""
    while not await cluster.has(MODEL_DEPLOYMENT):
        _LOG.warning(
            "The cluster has no ModelDeployment. Apply the output of: "
            "keras-deepseek operator render --crds-only"
        )
        await asyncio.sleep(_CRD_SECONDS)
