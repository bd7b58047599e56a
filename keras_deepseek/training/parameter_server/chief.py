"""The process that runs the script, among workers and servers."""

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
from keras_deepseek.training.parameter_server.engine import Engine
from keras_deepseek.training.parameter_server.ray_engine import RayEngine
from keras_deepseek.training.parameter_server.served_step import ServedStep


def make_engine(settings: ServerSettings, cluster: ClusterSpec) -> Engine:
    """Returns the engine of the framework that Keras runs on.

    Args:
        settings: `ServerSettings`.
        cluster: `ClusterSpec`.

    Raises:
        InvalidInputError: TensorFlow has computed something already; or others run the script.
        MissingExtraError: `ray` is not installed, on JAX and PyTorch.
        PeerLostError: A worker or a server does not come in time.
    """
    if keras.backend.backend() == "tensorflow":
        return CoordinatorEngine(settings, cluster)
    return RayEngine(settings, cluster)


class Chief(OneProcess):
    """A process that trains by workers and servers.

    Args:
        settings: `ServerSettings`.
        cluster: `ClusterSpec`.

    Raises:
        KerasDeepSeekError: As `make_engine`.
    """

    def __init__(self, settings: ServerSettings, cluster: ClusterSpec) -> None:
        self.engine = make_engine(settings, cluster)
        self._num_servers = settings.num_servers
        self._wishes: list[bool] = []
        self._step: ServedStep | None = None

    def serve(
        self,
        trainer: Any,
        make_model: Callable[[], keras.Model] | None,
        device_kind: str,
        *,
        guard: Any,
        **step: Any,
    ) -> ServedStep:
        """Returns what makes the steps of a trainer.

        Args:
            trainer: `Trainer`, with its model.
            make_model: The function that the model was built by, or `None`.
            device_kind: string. `"cpu"`, `"gpu"` or `"tpu"`: what the workers compute on.
            guard: As for `Trainer`.
            **step: Further arguments of `Trainer` for each step, its `policy` and `float32_layers`.

        Raises:
            InvalidInputError: The model has a step of its own, or there are not as many processors
                or GPUs.
            NotSupportedError: Something of this needs all that a step finds at once.
            PeerLostError: There is no Ray cluster at the address.
        """
        model = trainer.model
        _refuse_what_waits(model, guard, device_kind)
        own_clip = getattr(model.optimizer, "global_clipnorm", None)
        self.engine.prepare(trainer, make_model, device_kind, {**step, "global_clipnorm": own_clip})
        self._step = ServedStep(model, self.engine, self._num_servers)
        return self._step

    def training(self, arguments: dict[str, Any]) -> AbstractContextManager[None]:
        """Returns a context in which workers make the steps of a training.

        Args:
            arguments: dict. Those of `model.fit`, on a stream.
        """
        if self._step is None:
            raise RuntimeError("There is no trainer.")
        return self._step.training(arguments["x"].stream, arguments["callbacks"])

    def agree(self, wishes: Sequence[bool]) -> list[bool]:
        """Returns the wishes once no batch is under way; until then none is handed out."""
        before = self._wishes or [False] * len(wishes)
        self._wishes = [one or other for one, other in zip(wishes, before, strict=True)]
        if self._step is None or not self._step.num_open:
            return self.agree_now(wishes)
        self._step.pause(is_paused=any(self._wishes))
        return [False] * len(wishes)

    def agree_now(self, wishes: Sequence[bool]) -> list[bool]:
        """Returns the wishes, those of before among them."""
        before, self._wishes = self._wishes or [False] * len(wishes), []
        if self._step is not None:
            self._step.pause(is_paused=False)
        return [one or other for one, other in zip(wishes, before, strict=True)]


def _refuse_what_waits(model: keras.Model, guard: Any, device_kind: str) -> None:
    """Raises an error for what would have to look at a step before others follow it."""
    reasons = {
        "workers on TPUs. Use device_map={'cpu': 0}": device_kind == "tpu",
        "`guard`: others go on by an update before it is judged": guard is not None,
        "float16, whose loss scale follows each step. Use precision='mixed_bfloat16'": isinstance(
            model.optimizer, keras.optimizers.LossScaleOptimizer
        ),
        "`steps_per_execution` above 1": int(model.steps_per_execution) > 1,
        "modules of PyTorch with buffers, which Keras does not know": bool(
            backend.current().step.read_buffers(model)
        ),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise NotSupportedError(f"A parameter server can't train with {reason}.")
    if overrides_train_step(model):
        raise InvalidInputError(
            f"Model {model.name!r} has a `train_step` of its own, which workers can't take apart "
            "into gradients and update. Write it as `Trainer.train_step`."
        )
