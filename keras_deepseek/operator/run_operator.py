"""The run of the operator: each change of an object asks the `Reconciler` for a pass over it.

No object gets a finalizer or an annotation, so deletion never hangs.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import aiohttp
import kopf
from aiohttp import web

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.operator.cluster import Cluster, ClusterError
from keras_deepseek.operator.kinds import MODEL_DEPLOYMENT, SCALED_OBJECT, Kind
from keras_deepseek.operator.plan import MANAGED, Settings
from keras_deepseek.operator.reconciler import Reconciler

_LOG = logging.getLogger(__name__)
_AGAIN_SECONDS = 5.0


def run_operator(settings: Settings, liveness: str | None = None) -> None:
    """Runs the operator until SIGTERM or Ctrl-C.

    Args:
        settings: The settings.
        liveness: The URL to answer liveness probes at, as `http://0.0.0.0:8080/healthz`, or `None`.

    Raises:
        InvalidInputError: `liveness` is no URL of `http`, or its port is in use.
        NotSupportedError: The API server can't be reached, or refuses the credentials.
    """
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_run(settings, liveness))


async def _run(settings: Settings, liveness: str | None) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with _answer_probes(liveness):
        cluster = await _connect()
        _LOG.info("Started on %s with %s", cluster.server, settings)
        try:
            kinds = await _wait_for_kinds(cluster)
            reconciler = Reconciler(cluster, settings)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(reconciler.run())
                for kind in kinds:
                    tasks.create_task(_watch(cluster, reconciler, kind))
        finally:
            await cluster.close()


async def _watch(cluster: Cluster, reconciler: Reconciler, kind: Kind) -> None:
    """Asks for a pass over each object that changes, or of which a child of the kind changes."""
    params = {"labelSelector": ",".join(f"{key}={value}" for key, value in MANAGED.items())}
    if kind is MODEL_DEPLOYMENT:
        params = {}
    while True:
        try:
            async for item in cluster.watch(kind, **params):
                metadata = item["metadata"]
                owners = [metadata]
                if kind is not MODEL_DEPLOYMENT:
                    owners = metadata.get("ownerReferences", [])
                    owners = [owner for owner in owners if owner["kind"] == MODEL_DEPLOYMENT.name]
                for owner in owners:
                    reconciler.ask(metadata["namespace"], owner["name"])
        except (aiohttp.ClientError, TimeoutError, ClusterError, ValueError) as error:
            is_refused = isinstance(error, ClusterError) and error.is_permanent
            level = logging.WARNING if is_refused else logging.DEBUG
            _LOG.log(level, "The watch of %s begins anew: %s", kind.name, error)
        await asyncio.sleep(_AGAIN_SECONDS)


@contextlib.asynccontextmanager
async def _answer_probes(url: str | None) -> AsyncIterator[None]:
    """Context manager that answers liveness probes at a URL, or does nothing for `None`."""
    if url is None:
        yield
        return
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise InvalidInputError(f"--liveness must be as http://0.0.0.0:8080/healthz, not {url!r}.")

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    application = web.Application()
    application.router.add_get(parts.path or "/", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, parts.hostname, parts.port or 80).start()
        except OSError as error:
            raise InvalidInputError(f"Can't answer at {url}: {error}") from error
        yield
    finally:
        await runner.cleanup()


async def _connect() -> Cluster:
    """Returns the API server of the credentials that are found, after a first request."""
    try:
        login = _find_login()
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=login.as_ssl_context()),
            headers=login.as_http_headers(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        )
        cluster = Cluster(session, login.server, lambda: _find_login().as_http_headers())
    except (kopf.LoginError, OSError, ValueError) as error:
        raise NotSupportedError(f"{error}. Set KUBECONFIG, or run in a cluster.") from error
    except Exception as error:  # kopf reads KUBECONFIG's file as if it had the right form.
        raise NotSupportedError(
            f"KUBECONFIG's file can't be used: {type(error).__name__}: {error}. Try kubectl."
        ) from error
    try:
        await cluster.kinds()
    except (aiohttp.ClientError, TimeoutError, ClusterError) as error:
        await cluster.close()
        raise NotSupportedError(
            f"The API server at {cluster.server} does not answer as it should: {error}"
        ) from error
    return cluster


def _find_login() -> kopf.ConnectionInfo:
    settings = kopf.OperatorSettings()
    login = kopf.login_with_service_account(settings=settings)
    login = login or kopf.login_with_kubeconfig(settings=settings)
    if login is None:
        raise kopf.LoginError("No credentials of a cluster were found")
    return login


async def _wait_for_kinds(cluster: Cluster) -> set[Kind]:
    """Waits for the CRD, and returns the kinds to watch.

    ScaledObjects are not watched, since KEDA writes into them all the time, nor kinds that the
    cluster gets later. `Reconciler.resync` lists all kinds each minute, and finds their changes.
    """
    is_told = False
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ClusterError):
            if await cluster.has(MODEL_DEPLOYMENT):
                return {MODEL_DEPLOYMENT, *await cluster.kinds()} - {SCALED_OBJECT}
            if not is_told:
                _LOG.warning(
                    "The cluster has no ModelDeployment. Apply the output of: "
                    "keras-deepseek operator render --crds-only"
                )
                is_told = True
        await asyncio.sleep(_AGAIN_SECONDS)
