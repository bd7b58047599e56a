"""The parameter server engine for JAX and PyTorch: workers and servers as Ray actors."""

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.artifacts.network_address import check_is_answered
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import (
    InvalidInputError,
    KerasDeepSeekError,
    MissingExtraError,
    PeerLostError,
)
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec
from keras_deepseek.training.cluster.parameter_server import ServerSettings
from keras_deepseek.training.cluster.start_processes import read_peer_timeout
from keras_deepseek.training.parameter_server.dispatcher import Dispatcher
from keras_deepseek.training.parameter_server.join_servers import refuse_other_chiefs
from keras_deepseek.training.parameter_server.messages import (
    Push,
    Result,
    ShardPlan,
    ShardValues,
    Task,
    WorkerPlan,
)
from keras_deepseek.training.parameter_server.model_shards import ModelShards
from keras_deepseek.training.parameter_server.pickled_trainer import pickle_trainer
from keras_deepseek.training.parameter_server.served_step import Engine
from keras_deepseek.training.parameter_server.shard_server import ShardServer
from keras_deepseek.training.parameter_server.worker import Worker
from keras_deepseek.training.parameter_server.workers import (
    ProcessEndedError,
    StalenessBound,
    Workers,
)

_LOOPBACK = "127.0.0.1"


def import_ray() -> Any:
    """Imports the optional package `ray`."""
    # By default, Ray reports each start to its developers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "for a parameter server") from error
    return ray


def start_ray(settings: ServerSettings, num_gpus: int = 0) -> None:
    """Joins a Ray cluster, or starts one on this machine that listens on loopback only.

    If the script has joined a cluster, that one is used. `num_gpus` are the GPUs of all workers
    together.
    """
    ray = import_ray()
    num_actors = settings.num_workers + settings.num_servers
    if not ray.is_initialized():
        with warnings.catch_warnings():
            # JAX warns of forks; Ray's fork starts another program at once.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            _start(ray, settings.address, num_actors)
    resources = ray.cluster_resources()
    for name, needed in (("CPU", num_actors), ("GPU", num_gpus)):
        if resources.get(name, 0) < needed:
            raise InvalidInputError(
                f"{settings.num_workers} workers and {settings.num_servers} servers need {needed} "
                f"{name}s of Ray, and the cluster has {resources.get(name, 0):g}. Use fewer "
                "workers, or add nodes."
            )


def _start(ray: Any, address: str | None, num_actors: int) -> None:
    if address is None:
        # The number of processes. A machine with fewer processors runs them in turns.
        ray.init(
            address="local",  # By default, Ray looks for a cluster that was started here before.
            num_cpus=num_actors,
            include_dashboard=False,
            logging_level="ERROR",
            _node_ip_address=_LOOPBACK,
        )
        return
    if address != "auto":  # Ray itself would try for minutes.
        check_is_answered("Ray cluster", address.removeprefix("ray://"))
    try:
        ray.init(address=address, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise PeerLostError(
            f"There is no Ray cluster at {address!r}: {str(error).splitlines()[0]}. Start one with "
            "`ray start --head`, or leave the address out for one on this machine."
        ) from error


class RayServers:
    """A worker's connection to the `ShardServer` actors, whose calls return futures at once."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def pull(self, index: int, version: tuple[str | None, int]) -> Any:
        """Asks a server for its weights and states; returns the future of a `Pulled`."""
        return self._handles[index].pull.remote(*version)

    def push(self, index: int, push: Push) -> Any:
        """Sends gradients to a server; returns the future of the answer of `ShardServer.push`."""
        return self._handles[index].push.remote(push)

    def wait(self, futures: list[Any]) -> list[Any]:
        """Waits for all of the given futures, and returns their values."""
        values: list[Any] = import_ray().get(futures)
        return values


class RayActors(Workers):
    """The Ray actors of one training, which are its workers and servers.

    The seed is for the random generators of the workers' frameworks. `num_gpus` are the GPUs of
    each worker.
    """

    def __init__(
        self,
        settings: ServerSettings,
        shard_plans: Sequence[ShardPlan],
        worker_plan: WorkerPlan,
        *,
        seed: int,
        num_gpus: int,
    ) -> None:
        ray = self._ray = import_ray()
        self.num_workers, self.num_servers = settings.num_workers, settings.num_servers
        self._seed = seed
        self.servers = _take(ShardServer, self.num_servers, num_gpus=0)
        self.workers = _take(Worker, self.num_workers, num_gpus=num_gpus)
        self._num_gpus = num_gpus
        self._shard_plans = [_put(ray, plan) for plan in shard_plans]
        self._worker_plan = ray.put(worker_plan)
        self._links = RayServers(self.servers)
        self._variables: Any = None

    def set_up_worker(self, worker: int, variables: Sequence[Array]) -> Any:
        if self._variables is None:
            self._variables = self._ray.put(list(variables))
        seed = (self._seed + worker) % 2**32
        return self.workers[worker].set_up.remote(
            self._links, self._worker_plan, self._variables, seed
        )

    def compute(self, worker: int, task: Task) -> Any:
        # Ray does not send it again if the worker ends: the dispatcher gives it to another one.
        return self.workers[worker].compute.options(max_task_retries=0).remote(task)

    def finish(self, worker: int, task: Task, future: Any) -> Result | None:
        result: Result | None = self.result(future)
        return result

    def restart_workers(self, workers: Sequence[int]) -> None:
        for worker in workers:
            self._ray.kill(self.workers[worker], no_restart=False)

    def set_up_server(self, server: int, values: ShardValues) -> Any:
        return self.servers[server].set_up.remote(self._shard_plans[server], values)

    def read_server(self, server: int) -> Any:
        return self.servers[server].read.remote()

    def read_life(self, server: int) -> Any:
        return self.servers[server].life.remote()

    def restart_server(self, server: int) -> None:
        self._ray.kill(self.servers[server], no_restart=False)

    def most_missed(self) -> int:
        """Returns the largest staleness: the most updates that an update's weights had missed."""
        missed = self._ray.get([server.most_missed.remote() for server in self.servers])
        return int(max(missed))

    def wait(self, futures: Sequence[Any], timeout: float) -> list[Any]:
        ready, _ = self._ray.wait(list(futures), num_returns=1, timeout=timeout)
        return list(ready)

    def result(self, future: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(future)
        except errors.RayTaskError as error:  # An error of the user's code, or of ours.
            cause = error.cause
            if isinstance(cause, errors.RayError):
                raise ProcessEndedError(str(cause).splitlines()[0]) from error
            if not isinstance(cause, KerasDeepSeekError):
                cause.add_note(f"It came from a worker:\n{error}")
            raise cause from None
        except errors.RayError as error:
            raise ProcessEndedError(str(error).splitlines()[0]) from error

    def close(self, *, is_clean: bool) -> None:
        """Keeps the actors for another training if this one ended well, else kills them."""
        for kind, actors, num_gpus in (
            (ShardServer, self.servers, 0),
            (Worker, self.workers, self._num_gpus),
        ):
            if is_clean:
                self._ray.get([actor.reset.remote() for actor in actors])
                _idle.setdefault(_key(kind, num_gpus), []).extend(actors)
                continue
            for actor in actors:
                with contextlib.suppress(Exception):  # The cluster may be gone.
                    self._ray.kill(actor)


_idle: dict[tuple[Any, ...], list[Any]] = {}
"""Actors that no training uses. To start one takes seconds, most of them for Keras's imports."""


def _key(kind: type, num_gpus: int) -> tuple[Any, ...]:
    job = import_ray().get_runtime_context().get_job_id()  # Actors end with their Ray job.
    return kind, num_gpus, keras.backend.backend(), job


def _take(kind: type, number: int, num_gpus: int) -> list[Any]:
    """Returns actors for a training, idle ones first, and kills surplus idle ones."""
    ray = import_ray()
    key = _key(kind, num_gpus)
    idle = _idle.pop(key, [])
    for actor in idle[number:]:
        ray.kill(actor)
    # Ray restarts an actor any number of times, and repeats the calls that it has not finished,
    # which does no harm. It does not repeat `compute`: another worker gets the batch.
    make = ray.remote(
        max_restarts=-1,
        max_task_retries=-1,
        num_cpus=1,
        num_gpus=num_gpus,
        runtime_env={"env_vars": {"KERAS_BACKEND": keras.backend.backend()}},
    )(kind)
    return [*idle[:number], *(make.remote() for _ in range(number - len(idle)))]


def _put(ray: Any, plan: ShardPlan) -> Any:
    try:
        return ray.put(plan)
    except Exception as error:
        raise InvalidInputError(
            f"Servers get the optimizer {plan.optimizer_class.__name__} by pickle, and that fails: "
            f"{str(error).splitlines()[0]}. Use an optimizer that can be pickled."
        ) from error


class RayEngine(Engine):
    """Starts workers and servers as Ray actors. Each worker builds its own model."""

    def __init__(self, settings: ServerSettings, cluster: ClusterSpec) -> None:
        refuse_other_chiefs(settings, cluster)
        import_ray()
        self._settings = settings
        self._timeout = read_peer_timeout()
        self._num_gpus = 0
        self._pack: Callable[[], bytes] | None = None
        self.actors: RayActors | None = None

    def prepare(
        self,
        trainer: Any,
        make_model: Callable[[], keras.Model] | None,
        device_kind: str,
        step: Mapping[str, Any],
    ) -> None:
        """Stores the trainer for the start of a training, and joins or starts a Ray cluster."""
        self._pack = functools.partial(pickle_trainer, trainer, make_model, step)
        self._num_gpus = 1 if device_kind == "gpu" else 0
        start_ray(self._settings, self._num_gpus * self._settings.num_workers)

    def start(self, shards: ModelShards, batch: Any) -> Dispatcher:
        """Starts the Ray actors of a training; returns its dispatcher."""
        if self._pack is None:
            raise RuntimeError("There is no trainer.")
        settings = self._settings
        staleness = StalenessBound(settings.staleness_bound, settings.num_workers)
        self.actors = RayActors(
            settings,
            shards.plans(),
            WorkerPlan(
                self._pack(),
                shards.describe(),
                shards.shards,
                batch,
                looks_ahead=staleness.most_before > 0,
            ),
            seed=backend.current().step.draw_seed(),
            num_gpus=self._num_gpus,
        )
        return Dispatcher(
            self.actors, staleness, snapshot_every=settings.snapshot_every, timeout=self._timeout
        )

    def stop(self, *, is_clean: bool) -> None:
        """Keeps the Ray actors for another training; ends them if this training failed."""
        actors, self.actors = self.actors, None
        if actors is not None:
            actors.close(is_clean=is_clean)
