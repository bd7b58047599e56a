"""The parameter server engine for TensorFlow, on its coordinator, workers and servers."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.processes.task_cluster import ResultLostError, TaskCluster
from keras_deepseek.errors import PeerLostError
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec
from keras_deepseek.training.cluster.parameter_server import ServerSettings
from keras_deepseek.training.cluster.start_processes import read_peer_timeout
from keras_deepseek.training.parameter_server.coordinator_step import CoordinatorStep
from keras_deepseek.training.parameter_server.dispatcher import Dispatcher
from keras_deepseek.training.parameter_server.gradient_step import take_gradient_step
from keras_deepseek.training.parameter_server.join_servers import Tasks, join_servers
from keras_deepseek.training.parameter_server.messages import Result, ShardValues, Task
from keras_deepseek.training.parameter_server.model_shards import ModelShards
from keras_deepseek.training.parameter_server.remote_model import RemoteModel
from keras_deepseek.training.parameter_server.served_step import Engine
from keras_deepseek.training.parameter_server.workers import (
    ProcessEndedError,
    StalenessBound,
    Workers,
)

_CHECK_EVERY = 1.0
"""Seconds between two checks that the processes still run."""


class CoordinatorEngine(Engine):
    """The engine of TensorFlow, whose workers and servers compute functions of the chief.

    If `TF_CONFIG` names no addresses, the processes are started on this machine.
    """

    def __init__(self, settings: ServerSettings, cluster: ClusterSpec) -> None:
        self._settings = settings
        self._timeout = read_peer_timeout()
        joined = join_servers(settings, cluster)
        if joined is None:
            raise RuntimeError("Keras does not run on TensorFlow.")
        self.tasks, self._cluster = joined
        self._make_step: Callable[[], CoordinatorStep] | None = None

    def prepare(
        self,
        trainer: Any,
        make_model: Callable[[], keras.Model] | None,
        device_kind: str,
        step: Mapping[str, Any],
    ) -> None:
        """Stores the trainer for the start of a training.

        Workers build no model, and use their first GPU if they have one.
        """
        self._make_step = lambda: _make_step(trainer, step)

    def start(self, shards: ModelShards, batch: Any) -> Dispatcher:
        """Puts the model's variables on the servers; returns the dispatcher of the training."""
        if self._make_step is None:
            raise RuntimeError("There is no trainer.")
        settings = self._settings
        num_slots = settings.num_workers + 1  # One batch waits for the next free worker.
        step = self._make_step()
        step.remote = RemoteModel(
            self._cluster,
            shards.plans(),
            shards.shards,
            shards.read(0),
            step.read_frozen(),
            num_slots,
        )
        return Dispatcher(
            CoordinatorWorkers(self._cluster, step, step.remote, self.tasks, num_slots),
            StalenessBound(settings.staleness_bound, settings.num_workers, looks_ahead=False),
            snapshot_every=None,  # A server of TensorFlow's that ends does not come back.
            timeout=self._timeout,
        )

    def stop(self, *, is_clean: bool) -> None:
        """Waits for the batches that workers still compute, if the training failed."""
        if not is_clean:
            self._cluster.settle()


class CoordinatorWorkers(Workers):
    """Transport of batches through TensorFlow's coordinator, which picks a process for each.

    So a "worker" is here one of the slots in which the servers hold the gradients of a batch until
    the chief makes its update. If a process ends, the coordinator itself has another one compute
    the batch into the same slot.
    """

    def __init__(
        self,
        cluster: TaskCluster,
        step: CoordinatorStep,
        remote: RemoteModel,
        tasks: Tasks,
        num_slots: int,
    ) -> None:
        self.num_workers, self.num_servers = num_slots, cluster.num_servers
        self._cluster = cluster
        self._step = step
        self._remote = remote
        self._compiled = cluster.compile(step)
        self._tasks = tasks

    def set_up_worker(self, worker: int, variables: Sequence[Array]) -> Future[Any]:
        return _done(None)  # Workers hold no model.

    def compute(self, worker: int, task: Task) -> Future[Any]:
        """Schedules a batch on the next free process, with gradients for the slot `worker`."""
        arguments = [task.batch, self._step.seeds.of(task.number), np.int32(worker)]
        return self._cluster.schedule(self._compiled, arguments)

    def finish(self, worker: int, task: Task, future: Future[Any]) -> Result:
        try:
            logs, metrics = future.result()
        except ResultLostError as error:
            self._tasks.look_after()  # Raises if the process that ended was a server.
            raise ProcessEndedError(str(error)) from error
        self._remote.update(worker, task.rate)
        self._tasks.note_update()
        numbers = {name: float(value) for name, value in logs.items()}
        return Result(numbers, [_to_array(metric) for metric in metrics], pushes=[])

    def restart_workers(self, workers: Sequence[int]) -> None:
        # All of them, since any may have the batches.
        self._tasks.look_after(ends_workers=True)

    def set_up_server(self, server: int, values: ShardValues) -> Future[Any]:
        self._remote.write(server, values)
        return _done("")  # The server has one run only.

    def read_server(self, server: int) -> Future[Any]:
        return _done(self._remote.read(server))

    def wait(self, futures: Sequence[Future[Any]], timeout: float) -> list[Future[Any]]:
        """Returns the finished futures, failed ones first, and checks the processes meanwhile.

        When one batch fails, the coordinator cancels all others. A cancelled future is left out, so
        that the error of the batch that failed is raised.
        """
        deadline = time.monotonic() + timeout
        while True:
            waiting = [future for future in futures if not _is_cancelled(future)]
            if not waiting:
                raise PeerLostError(
                    "TensorFlow has cancelled all batches, and no worker reported an error. The "
                    "first error in the workers' logs says why."
                )
            done, _ = wait(waiting, timeout=_CHECK_EVERY, return_when=FIRST_COMPLETED)
            finished = [
                future for future in waiting if future in done and not _is_cancelled(future)
            ]
            if finished:
                return sorted(finished, key=lambda future: future.exception() is None)
            if not done:
                if time.monotonic() > deadline:
                    return []
                self._tasks.look_after()

    def result(self, future: Future[Any]) -> Any:
        return future.result()


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def _is_cancelled(future: Future[Any]) -> bool:
    return future.done() and isinstance(future.exception(), CancelledError)


def _to_array(value: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(value))


def _make_step(trainer: Any, arguments: Mapping[str, Any]) -> CoordinatorStep:
    run, prepare = take_gradient_step(copy.copy(trainer), arguments)
    prepare()
    return CoordinatorStep(trainer.model, run, _own_variables(trainer))


def _own_variables(trainer: Any) -> list[keras.Variable]:
    """Returns the variables of layers in the trainer's attributes, such as a teacher."""
    attributes = keras.tree.flatten(
        [value for value in vars(trainer).values() if value is not None]
    )
    return [
        variable
        for attribute in attributes
        if isinstance(attribute, keras.Layer)
        for variable in attribute.variables
    ]
