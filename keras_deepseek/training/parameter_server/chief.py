"""The process that runs the script, among workers and servers that it starts."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.artifacts.errors import InvalidInputError, NotSupportedError
from keras_deepseek.backend.keras_training import own_train_step
from keras_deepseek.backend.processes import OneProcess
from keras_deepseek.training.cluster import ClusterSpec
from keras_deepseek.training.join_cluster import read_peer_timeout
from keras_deepseek.training.parameter_server.dispatcher import Dispatcher
from keras_deepseek.training.parameter_server.messages import WorkerPlan
from keras_deepseek.training.parameter_server.packed_trainer import pack_trainer
from keras_deepseek.training.parameter_server.ray_actors import (
    RayActors,
    import_ray,
    start_ray,
)
from keras_deepseek.training.parameter_server.served_step import ServedStep
from keras_deepseek.training.parameter_server.served_variables import ServedVariables
from keras_deepseek.training.parameter_server.settings import ServerSettings
from keras_deepseek.training.parameter_server.staleness import StalenessBound


class Chief(OneProcess):
    """A process that trains by workers and servers.

    Args:
        settings: `ServerSettings`.
        cluster: `ClusterSpec`.

    Raises:
        InvalidInputError: Other processes run the script too.
        MissingExtraError: `ray` is not installed.
    """

    def __init__(self, settings: ServerSettings, cluster: ClusterSpec) -> None:
        if cluster.world_size > 1:
            raise InvalidInputError(
                f"One process runs the script, the chief, and starts {settings.num_workers} "
                f"workers and {settings.num_servers} servers by Ray; received world_size="
                f"{cluster.world_size}. Start it once, or by keras-deepseek launch --strategy "
                "parameter_server."
            )
        import_ray()
        self._settings = settings
        self._timeout = read_peer_timeout()
        self._num_gpus = 0
        self._actors: RayActors | None = None
        self._wishes: list[bool] = []
        self._pack: Callable[[], bytes] | None = None
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
        """Returns what makes the steps of a trainer, by a Ray that runs from here on.

        Args:
            trainer: `Trainer`, with its model.
            make_model: The function that the model was built by, or `None`.
            device_kind: string. `"cpu"`, `"gpu"` or `"tpu"`: what the workers compute on.
            guard: As for `Trainer`.
            **step: Further arguments of `Trainer` for each step, and its `policy`.

        Raises:
            InvalidInputError: The model has a step of its own, or the cluster has not as many
                processors or GPUs.
            NotSupportedError: Something of this needs all that a step finds at once.
            PeerLostError: There is no Ray cluster at the address.
        """
        model = trainer.model
        _refuse_what_waits(model, guard, device_kind)
        own_clip = getattr(model.optimizer, "global_clipnorm", None)
        self._pack = functools.partial(
            pack_trainer, trainer, make_model, {**step, "global_clipnorm": own_clip}
        )
        self._num_gpus = 1 if device_kind == "gpu" else 0
        start_ray(self._settings, self._num_gpus * self._settings.num_workers)
        self._step = ServedStep(model, self, self._settings.num_servers)
        return self._step

    def training(self, arguments: dict[str, Any]) -> AbstractContextManager[None]:
        """Returns a context in which workers make the steps of a training.

        Args:
            arguments: dict. Those of `model.fit`, on a stream.
        """
        if self._step is None:
            raise RuntimeError("There is no trainer.")
        return self._step.training(arguments["x"].stream, arguments["callbacks"])

    def start(self, variables: ServedVariables, batch: Any) -> RayActors:
        """Returns the actors of a training, for which a first batch is compiled.

        Args:
            variables: `ServedVariables` of the model.
            batch: Structure of NumPy arrays.
        """
        if self._pack is None:
            raise RuntimeError("There is no trainer.")
        settings = self._settings
        staleness = StalenessBound(settings.staleness_bound, settings.num_workers)
        self._actors = RayActors(
            settings,
            variables.plans(),
            WorkerPlan(
                self._pack(),
                variables.describe(),
                variables.shards,
                batch,
                looks_ahead=staleness.most_before > 0,
            ),
            seed=backend.current().draw_seed(),
            num_gpus=self._num_gpus,
        )
        return self._actors

    def make_dispatcher(self, actors: Any) -> Dispatcher:
        """Returns the bookkeeping of the actors' batches.

        Args:
            actors: `RayActors`.
        """
        return Dispatcher(
            actors,
            staleness_bound=self._settings.staleness_bound,
            snapshot_every=self._settings.snapshot_every,
            timeout=self._timeout,
        )

    def stop(self, *, is_clean: bool) -> None:
        """Lets the actors go, or ends them.

        Args:
            is_clean: boolean. Whether the training has ended well.
        """
        actors, self._actors = self._actors, None
        if actors is not None:
            actors.close(is_clean=is_clean)

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
            backend.current().read_buffers(model)
        ),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise NotSupportedError(f"A parameter server can't train with {reason}.")
    if own_train_step(model):
        raise InvalidInputError(
            f"Model {model.name!r} has a `train_step` of its own, which workers can't take apart "
            "into gradients and update. Write it as `Trainer.train_step`."
        )
