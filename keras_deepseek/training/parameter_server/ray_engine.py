"""The parameter server engine for JAX and PyTorch, with workers and servers as Ray actors."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec
from keras_deepseek.training.cluster.parameter_server import ServerSettings
from keras_deepseek.training.cluster.timeouts import read_peer_timeout
from keras_deepseek.training.parameter_server.dispatcher import Dispatcher
from keras_deepseek.training.parameter_server.engine import Engine
from keras_deepseek.training.parameter_server.join_servers import refuse_other_chiefs
from keras_deepseek.training.parameter_server.messages import WorkerPlan
from keras_deepseek.training.parameter_server.model_shards import ModelShards
from keras_deepseek.training.parameter_server.pickled_trainer import pickle_trainer
from keras_deepseek.training.parameter_server.ray_actors import (
    RayActors,
    import_ray,
    start_ray,
)
from keras_deepseek.training.parameter_server.staleness import StalenessBound


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
            self.actors,
            staleness,
            snapshot_every=settings.snapshot_every,
            timeout=self._timeout,
        )

    def stop(self, *, is_clean: bool) -> None:
        """Keeps the Ray actors for another training; ends them if this training failed."""
        actors, self.actors = self.actors, None
        if actors is not None:
            actors.close(is_clean=is_clean)
