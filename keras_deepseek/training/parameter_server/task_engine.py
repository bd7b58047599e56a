"""A parameter server by TensorFlow's own: a coordinator, workers and servers."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_deepseek.training.cluster.cluster_spec import ClusterSpec
from keras_deepseek.training.cluster.parameter_server import ServerSettings
from keras_deepseek.training.cluster.timeouts import read_peer_timeout
from keras_deepseek.training.parameter_server.gradient_step import take_gradient_step
from keras_deepseek.training.parameter_server.join_servers import join_servers
from keras_deepseek.training.parameter_server.remote_model import RemoteModel
from keras_deepseek.training.parameter_server.served_variables import ServedVariables
from keras_deepseek.training.parameter_server.staleness import StalenessBound
from keras_deepseek.training.parameter_server.task_dispatcher import TaskDispatcher
from keras_deepseek.training.parameter_server.task_step import TaskStep


class TaskEngine:
    """Connects to workers and servers, which compute functions of the chief's.

    Args:
        settings: `ServerSettings`.
        cluster: `ClusterSpec`. The addresses that `TF_CONFIG` names; without any, the tasks are
            started on this machine.

    Raises:
        InvalidInputError: TensorFlow has computed something already.
        PeerLostError: A task does not come in time.
    """

    def __init__(self, settings: ServerSettings, cluster: ClusterSpec) -> None:
        self._settings = settings
        self._timeout = read_peer_timeout()
        joined = join_servers(settings, cluster)
        if joined is None:
            raise RuntimeError("Keras does not run on TensorFlow.")
        self.tasks, self._cluster = joined
        self._make_step: Callable[[], TaskStep] | None = None

    def prepare(
        self,
        trainer: Any,
        make_model: Callable[[], keras.Model] | None,
        device_kind: str,
        step: Mapping[str, Any],
    ) -> None:
        """Takes note of a trainer.

        Args:
            trainer: `Trainer`, with its model.
            make_model: Not needed here: workers build no model.
            device_kind: string. Not needed here: a worker takes its first GPU, if it has one.
            step: dict. The arguments of the trainer's steps.
        """
        self._make_step = lambda: _make_step(trainer, step)

    def start(self, variables: ServedVariables, batch: Any) -> TaskDispatcher:
        """Returns the bookkeeping of a training.

        Args:
            variables: `ServedVariables` of the model.
            batch: Structure of NumPy arrays. Not needed here.
        """
        if self._make_step is None:
            raise RuntimeError("There is no trainer.")
        settings = self._settings
        staleness = StalenessBound(
            settings.staleness_bound, settings.num_workers, looks_ahead=False
        )
        num_slots = settings.num_workers + 1  # One waits for whichever worker is free first.
        step = self._make_step()
        step.remote = RemoteModel(
            self._cluster,
            variables.plans(),
            variables.shards,
            variables.read(0),
            step.read_frozen(),
            num_slots,
        )
        return TaskDispatcher(
            self._cluster,
            step,
            num_slots=num_slots,
            staleness=staleness,
            timeout=self._timeout,
            tasks=self.tasks,
        )

    def stop(self, *, is_clean: bool) -> None:
        """Waits for what is under way, where a training has failed.

        Args:
            is_clean: boolean. Whether it has ended well.
        """
        if not is_clean:
            self._cluster.settle()


def _make_step(trainer: Any, arguments: Mapping[str, Any]) -> TaskStep:
    run, prepare = take_gradient_step(copy.copy(trainer), arguments)
    prepare()
    return TaskStep(trainer.model, run, _held_variables(trainer))


def _held_variables(trainer: Any) -> list[keras.Variable]:
    """Returns the variables of layers that a trainer holds, such as a teacher's."""
    held = keras.tree.flatten([value for value in vars(trainer).values() if value is not None])
    return [
        variable for each in held if isinstance(each, keras.Layer) for variable in each.variables
    ]
