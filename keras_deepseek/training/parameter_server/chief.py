"""The chief process, which runs the script and has its steps computed by workers."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.trainers import overrides_train_step
from keras_deepseek.backend.processes.processes import OneProcess
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec
from keras_deepseek.training.cluster.parameter_server import ServerSettings
from keras_deepseek.training.parameter_server.coordinator_engine import CoordinatorEngine
from keras_deepseek.training.parameter_server.ray_actors import RayEngine
from keras_deepseek.training.parameter_server.served_step import Engine, ServedStep
from keras_deepseek.training.step.muon import Muon
from keras_deepseek.training.step.step_options import StepOptions


def make_engine(settings: ServerSettings, cluster: ClusterSpec) -> Engine:
    """Returns the worker and server engine for the backend that Keras runs on."""
    if keras.backend.backend() == "tensorflow":
        return CoordinatorEngine(settings, cluster)
    return RayEngine(settings, cluster)


class Chief(OneProcess):
    """The chief process of a training, whose steps are computed by workers and servers."""

    def __init__(self, settings: ServerSettings, cluster: ClusterSpec) -> None:
        self.engine = make_engine(settings, cluster)
        self._num_servers = settings.num_servers
        self._stop_requests: list[bool] = []
        self._step: ServedStep | None = None

    def serve(
        self,
        trainer: Any,
        make_model: Callable[[], keras.Model] | None,
        device_kind: str,
        options: StepOptions,
        policy: keras.DTypePolicy | None,
    ) -> ServedStep:
        """Returns a callable training step that the workers compute.

        `make_model` built the trainer's model. `device_kind` is that of the workers: `"cpu"`,
        `"gpu"` or `"tpu"`. Options that need the result of one step before the next one starts are
        rejected.
        """
        model = trainer.model
        _refuse_dependent_steps(model, options.guard, device_kind)
        own_clip = getattr(model.optimizer, "global_clipnorm", None)
        step = {"options": options, "policy": policy, "global_clipnorm": own_clip}
        self.engine.prepare(trainer, make_model, device_kind, step)
        self._step = ServedStep(model, self.engine, self._num_servers)
        return self._step

    def training(self, arguments: dict[str, Any]) -> AbstractContextManager[None]:
        """Returns a context manager in which workers make the steps of a `fit`.

        The arguments of `model.fit` have a stream as `x`.
        """
        if self._step is None:
            raise RuntimeError("There is no trainer.")
        return self._step.training(arguments["x"].stream, arguments["callbacks"])

    def all_reduce_flags(self, flags: Sequence[bool]) -> list[bool]:
        """Returns the requests of this process, such as to stop, once no batch is unfinished.

        Until then it returns False for each, and hands out no further batch.
        """
        held_back = self._stop_requests or [False] * len(flags)
        self._stop_requests = [new or old for new, old in zip(flags, held_back, strict=True)]
        if self._step is None or not self._step.num_open:
            return self.all_reduce_flags_now(flags)
        self._step.pause(is_paused=any(self._stop_requests))
        return [False] * len(flags)

    def all_reduce_flags_now(self, flags: Sequence[bool]) -> list[bool]:
        """Returns the requests at once, including those that `all_reduce_flags` holds back."""
        held_back, self._stop_requests = self._stop_requests or [False] * len(flags), []
        if self._step is not None:
            self._step.pause(is_paused=False)
        return [new or old for new, old in zip(flags, held_back, strict=True)]


def _refuse_dependent_steps(model: keras.Model, guard: Any, device_kind: str) -> None:
    reasons = {
        "workers on TPUs: use device_map={'cpu': 0}": device_kind == "tpu",
        "`guard`: other workers use an update before it can be checked": guard is not None,
        "float16 with its loss scale: use precision='bfloat16'": isinstance(
            model.optimizer, keras.optimizers.LossScaleOptimizer
        ),
        "`Muon`, which names all weights of a model: use AdamW": isinstance(model.optimizer, Muon),
        "`steps_per_execution` above 1": int(model.steps_per_execution) > 1,
        "PyTorch modules that have buffers, which Keras does not know": bool(
            backend.current().step.read_buffers(model)
        ),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise NotSupportedError(f"A parameter server does not support {reason}.")
    if overrides_train_step(model):
        raise InvalidInputError(
            f"Model {model.name!r} has its own `train_step`, which also makes the update; a "
            "worker needs the gradients alone. Write it as `Trainer.train_step` instead."
        )
