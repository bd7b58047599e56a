"""The worker as a Ray actor, which holds the model and computes gradients."""

from contextlib import ExitStack
from typing import Any, Protocol

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.data.random_state import seed_generators
from keras_deepseek.backend.keras_private.trainers import build_for_training
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.parameter_server.gradient_step import (
    GRADIENTS,
    BatchSeeds,
    take_gradient_step,
)
from keras_deepseek.training.parameter_server.messages import (
    Pulled,
    Push,
    Result,
    Shard,
    Task,
    WorkerPlan,
    pack_rows,
)
from keras_deepseek.training.parameter_server.model_shards import kept_states
from keras_deepseek.training.parameter_server.pickled_trainer import unpickle_trainer
from keras_deepseek.training.step.compiled_step import CompiledStep


class Servers(Protocol):
    """The interface by which a worker calls the servers. Calls return futures at once."""

    def pull(self, index: int, version: tuple[str | None, int]) -> Any:
        """Asks a server for its weights and states; returns the future of a `Pulled`."""

    def push(self, index: int, push: Push) -> Any:
        """Sends gradients to a server; returns the future of the answer of `ShardServer.push`."""

    def wait(self, futures: list[Any]) -> list[Any]:
        """Waits for all of the given futures, and returns their values."""


class Worker:
    """The worker, which computes the gradients of batches, one after the other.

    It starts without a model. After a restart by Ray it has none either.
    """

    def __init__(self) -> None:
        self._in_training = ExitStack()
        self.reset()

    def reset(self) -> None:
        """Drops the model, so that another training can start."""
        self._in_training.close()
        self._servers: Any = None
        self._model: Any = None
        self._shards: list[Shard] = []
        self._pulling: list[Any] | None = None
        self._versions: list[tuple[str | None, int]] = []

    def set_up(self, servers: Servers, plan: WorkerPlan, values: list[Array], seed: int) -> None:
        """Builds the model, compiles its step on a first batch, and sets all variables.

        `values` are those of all variables of the chief's model. The seed is for the framework's
        own random generators.
        """
        self._servers = servers
        if self._model is None:
            self._compile(plan)
        for variable, value in zip(self._model.variables, values, strict=True):
            variable.assign(value)
        self._seeds = BatchSeeds(self._model)
        seed_generators(seed)
        self._pulling = None
        # Pull all weights at first, whatever the variables hold.
        self._versions = [(None, 0) for _ in self._shards]

    def compute(self, task: Task) -> Result | None:
        """Computes a batch, starts sending its gradients to the servers, and returns the result.

        Returns:
            The result, whose `pushes` are `None` if a server has lost its weights; or `None` if the
            worker has restarted and has no model.
        """
        if self._model is None:
            return None
        versions = self._take_weights(task.least_updates)
        if versions is None:  # A server has restarted.
            return Result({}, [], None)
        if self._looks_ahead:  # The next weights come while this batch is computed.
            self._pulling = self._pull()
        for state, value in zip(self._seeds.variables, self._seeds.of(task.number), strict=True):
            state.assign(value)
        old_states = [_read(state) for state in self._states]
        self._model.reset_metrics()
        logs = backend.current().step.run_step(self._model, task.batch)
        gradients = [_pack(gradient) for gradient in logs.pop(GRADIENTS)]
        changes = [
            _read(state) - old_state
            for state, old_state in zip(self._states, old_states, strict=True)
        ]
        pushes = [
            self._servers.push(
                index,
                Push(
                    task.number,
                    version,
                    [gradients[variable_index] for variable_index in shard.variables],
                    [changes[state_index] for state_index in shard.states],
                    task.rate,
                    task.settled_below,
                ),
            )
            for index, (shard, version) in enumerate(zip(self._shards, versions, strict=True))
        ]
        metrics = [
            _read(variable) - old_value
            for variable, old_value in zip(
                self._model.metrics_variables, self._metrics_before, strict=True
            )
        ]
        logged = {
            name: float(value) for name, value in logs.items() if name not in self._metric_names
        }
        return Result(logged, metrics, pushes)

    def _compile(self, plan: WorkerPlan) -> None:
        trainer, step = unpickle_trainer(plan.trainer)
        model = trainer.model
        build_for_training(model, plan.batch)
        _check_variables(model, plan)
        run, prepare = take_gradient_step(trainer, step)
        in_place = CompiledStep(model, run, prepare)
        self._in_training.enter_context(in_place.use())
        model.make_train_function()
        model.reset_metrics()
        self._metrics_before = [_read(metric) for metric in model.metrics_variables]
        backend.current().step.run_step(model, plan.batch)
        self._metric_names = set(model.get_metrics_result())
        self._model, self._shards = model, plan.shards
        self._states = kept_states(model)
        self._looks_ahead = plan.looks_ahead

    def _pull(self) -> list[Any]:
        return [self._servers.pull(index, version) for index, version in enumerate(self._versions)]

    def _take_weights(self, least_updates: int) -> list[tuple[str, int]] | None:
        """Sets the model to the servers' newest weights; returns their versions or `None`."""
        pulling, self._pulling = self._pulling, None
        pulled = self._servers.wait(pulling or self._pull())
        pulled_versions = [
            (None, 0) if server_pulled is None else server_pulled.version
            for server_pulled in pulled
        ]
        # Weights that were requested ahead may be too old by now.
        if pulling and min(updates for _, updates in pulled_versions) < least_updates:
            self._write(pulled)
            pulled = self._servers.wait(self._pull())
        return self._write(pulled)

    def _write(self, pulled: list[Pulled | None]) -> list[tuple[str, int]] | None:
        """Writes the servers' values into the model, and returns the versions of the servers.

        It writes nothing and returns `None` if a server has no values, because it has restarted.
        """
        complete = [server_pulled for server_pulled in pulled if server_pulled is not None]
        if len(complete) < len(pulled):
            self._versions = [(None, 0) for _ in self._shards]
            return None
        variables = self._model.trainable_variables
        for shard, server_pulled in zip(self._shards, complete, strict=True):
            for variable_index, value in zip(
                shard.variables, server_pulled.weights or [], strict=False
            ):
                variables[variable_index].assign(value)
            for state_index, value in zip(shard.states, server_pulled.states or [], strict=False):
                self._states[state_index].assign(value)
        versions = [server_pulled.version for server_pulled in complete]
        self._versions = list(versions)
        return versions


def _check_variables(model: keras.Model, plan: WorkerPlan) -> None:
    """Freezes the variables that the chief has frozen; raises an error for other variables."""
    for variable, (_, _, is_trainable) in zip(model.variables, plan.variables, strict=False):
        variable.trainable = is_trainable
    descriptions = [
        (tuple(variable.shape), variable.dtype, variable.trainable) for variable in model.variables
    ]
    if descriptions != plan.variables:
        raise InvalidInputError(
            "The model that a worker has built differs from the chief's: it has "
            f"{len(descriptions)} variables, the chief's {len(plan.variables)}, or their shapes "
            "differ. The function that builds the model must build the same one each time. Do all "
            "changes to the model in that function."
        )


def _read(variable: keras.Variable) -> Array:
    return np.array(keras.ops.convert_to_numpy(variable.value))


def _pack(gradient: Any) -> Any:
    return None if gradient is None else pack_rows(np.array(keras.ops.convert_to_numpy(gradient)))
