"""The run of the operator: kopf watches the cluster, and the `Reconciler` does the rest.

kopf only watches: it puts no finalizer and no annotation on an object, so deletion never hangs.
"""

import asyncio
import contextlib
import itertools
import logging
import signal
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any
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
        NotSupportedError: The API server can't be reached, or refuses the credentials, or a watch
            failed for good. Kubernetes starts the pod again.
    """
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_run(settings, liveness))


async def _run(settings: Settings, liveness: str | None) -> None:
    _stop_on_signals()
    kopf_settings = kopf.OperatorSettings()
    kopf_settings.networking.error_backoffs = _Backoffs()
    kopf_settings.posting.enabled = False
    kopf_settings.scanning.disabled = True  # No right to list CRDs and namespaces is needed.
    kopf_settings.watching.server_timeout = 300
    selector = ",".join(f"{key}={value}" for key, value in MANAGED.items())
    async with _answer_probes(liveness):
        cluster = await _connect(kopf_settings)
        _LOG.info("Started on %s with %s", cluster.server, settings)
        try:
            watched = await _wait_for_definition(cluster)
            for kind in watched:
                kopf_settings.watching.label_selectors[kind.api_version, kind.plural] = selector
            reconciler = Reconciler(cluster, settings)
            await _work(reconciler, _registry(reconciler, cluster, watched), kopf_settings)
        finally:
            await cluster.close()


def _stop_on_signals() -> None:
    """Cancels the caller's task at SIGTERM and Ctrl-C, until `_work` replaces the handlers."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def _work(
    reconciler: Reconciler, registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings
) -> None:
    """Runs kopf and the workers until a signal, or until one of them ends for good.

    A watch does so after the CRD's deletion, a worker by a fault of its own.
    """
    is_ending, ends_watching = asyncio.Event(), asyncio.Event()

    async def end(**_: Any) -> None:
        is_ending.set()

    kopf.on.cleanup(registry=registry)(end)
    other_tasks = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=settings,
        standalone=True,
        clusterwide=True,
        stop_flag=ends_watching,
    )
    # At a signal kopf would close the session amid the work.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, is_ending.set)
    watching = asyncio.create_task(kopf.run_tasks(tasks, ignored=other_tasks))
    working = asyncio.create_task(reconciler.run())
    waiting = asyncio.create_task(is_ending.wait())
    await asyncio.wait({watching, working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    working.cancel()
    await asyncio.wait({working})
    ends_watching.set()
    # A watch can survive its first cancellation, and kopf would wait for it for ever.
    while not (await asyncio.wait({watching}, timeout=1.0))[0]:
        for task in asyncio.all_tasks() - other_tasks - {watching}:
            task.cancel()
    if not working.cancelled():
        await working  # It raises why it ended.
    try:
        await watching
    except Exception as error:
        raise NotSupportedError(f"A watch failed: {error}. Start the operator again.") from error


class _Backoffs:
    """Seconds before each retry of a request of kopf, without end.

    With an end, a refused right or an outage of a minute would end the operator.
    """

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1.0, 2.0, 5.0), itertools.repeat(10.0))


@contextlib.asynccontextmanager
async def _answer_probes(url: str | None) -> AsyncIterator[None]:
    """Answers liveness probes at a URL. kopf would do so only while it runs."""
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


def _registry(
    reconciler: Reconciler, cluster: Cluster, watched: Collection[Kind]
) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    sessions: list[aiohttp.ClientSession] = []

    async def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.AiohttpSession:
        if cluster.session in sessions:  # The API server refused it: the token has expired.
            cluster.use(*_log_in(settings))
        sessions.append(cluster.session)
        return kopf.AiohttpSession(aiohttp_session=cluster.session, server=cluster.server)

    def of_deployment(*, namespace: str | None, name: str, **_: Any) -> None:
        reconciler.ask(namespace or "", name)

    def of_child(*, namespace: str | None, meta: Any, **_: Any) -> None:
        for owner in meta.get("ownerReferences", []):
            if owner["kind"] == MODEL_DEPLOYMENT.name:
                reconciler.ask(namespace or "", owner["name"])

    kopf.on.login(registry=registry)(login)
    for kind in (MODEL_DEPLOYMENT, *watched):
        group, _, version = kind.api_version.rpartition("/")
        handler = of_deployment if kind is MODEL_DEPLOYMENT else of_child
        kopf.on.event(group, version, kind.plural, registry=registry)(handler)
    return registry


async def _connect(settings: kopf.OperatorSettings) -> Cluster:
    """Returns the API server after a first request: kopf would repeat a failed login for ever."""
    try:
        cluster = Cluster(*_log_in(settings), lambda: _find_login(settings).as_http_headers())
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


def _find_login(settings: kopf.OperatorSettings) -> kopf.ConnectionInfo:
    login = kopf.login_with_service_account(settings=settings)
    login = login or kopf.login_with_kubeconfig(settings=settings)
    if login is None:
        raise kopf.LoginError("No credentials of a cluster were found")
    return login


def _log_in(settings: kopf.OperatorSettings) -> tuple[aiohttp.ClientSession, str]:
    login = _find_login(settings)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=login.as_ssl_context()),
        headers=login.as_http_headers(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
    )
    return session, login.server


async def _wait_for_definition(cluster: Cluster) -> set[Kind]:
    """Waits for the CRD: kopf would never see one that comes after its start.

    Returns the kinds of children to watch. The full list, each minute, finds changes of the others:
    kinds that come later, and ScaledObjects, into which KEDA writes all the time.
    """
    is_told = False
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ClusterError):
            if await cluster.has(MODEL_DEPLOYMENT):
                return await cluster.kinds() - {SCALED_OBJECT}
            if not is_told:
                _LOG.warning(
                    "The cluster has no ModelDeployment. Apply the output of: "
                    "keras-deepseek operator render --crds-only"
                )
                is_told = True
        await asyncio.sleep(_AGAIN_SECONDS)
