"""The interface between the dispatcher and the engine that runs workers and servers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.training.parameter_server.messages import Result, ShardValues, Task

if TYPE_CHECKING:
    import keras

    from keras_deepseek.training.parameter_server.dispatcher import Dispatcher
    from keras_deepseek.training.parameter_server.model_shards import ModelShards


class ProcessEndedError(Exception):
    """The error for a worker or server process that ended before it answered."""


class Workers(ABC):
    """The interface to workers and servers, which sends batches and values.

    The `Dispatcher` decides which worker computes which batch, and when. A future is whatever
    the engine uses for one. Methods that return a future return at once.
    """

    num_workers: int
    """The number of batches that can be computed at once."""

    num_servers: int

    @abstractmethod
    def set_up_worker(self, worker: int, variables: Sequence[Array]) -> Any:
        """Sets up a worker, at first or after a restart; returns a future of its readiness.

        `variables` are the values of all variables of the chief's model.
        """

    @abstractmethod
    def compute(self, worker: int, task: Task) -> Any:
        """Sends a batch to a worker; returns a future for `finish`."""

    @abstractmethod
    def finish(self, worker: int, task: Task, future: Any) -> Result | None:
        """Returns the result of a computed batch, and starts its update on the servers.

        `Result.pushes` holds the futures of the servers' answers. It is empty if the update is
        already made, and `None` if a server has lost its values. Returns `None` if the worker has
        restarted and holds no model. After a `ProcessEndedError` the batch must be computed again.
        """

    @abstractmethod
    def restart_workers(self, workers: Sequence[int]) -> None:
        """Kills workers that do not answer, which the engine then starts again."""

    @abstractmethod
    def set_up_server(self, server: int, values: ShardValues) -> Any:
        """Sends a server its values; returns the future of an ID of the server's present run.

        A server that restarts has a new ID.
        """

    @abstractmethod
    def read_server(self, server: int) -> Any:
        """Returns the future of the server's `ShardValues`; `None` if it has lost them."""

    def read_life(self, server: int) -> Any:
        """Returns the future of a server's run ID; `None` if the server has lost its values."""
        raise NotImplementedError("The servers of this engine do not restart.")

    def restart_server(self, server: int) -> None:
        """Kills a server that does not answer; the engine starts it again without values."""
        raise NotImplementedError("The servers of this engine do not restart.")

    @abstractmethod
    def wait(self, futures: Sequence[Any], timeout: float) -> list[Any]:
        """Waits for at least one future, and returns the finished ones.

        An empty list after `timeout` seconds.
        """

    @abstractmethod
    def result(self, future: Any) -> Any:
        """Returns the value of a finished future, except of one that `compute` returned.

        Raises the error of the worker's code, or a `ProcessEndedError` if the process ended.
        """


class Engine(ABC):
    """The interface to a system that runs workers and servers: Ray, or TensorFlow's coordinator."""

    @abstractmethod
    def prepare(
        self,
        trainer: Any,
        make_model: "Callable[[], keras.Model] | None",
        device_kind: str,
        step: Mapping[str, Any],
    ) -> None:
        """Stores the trainer whose steps the workers compute.

        `make_model` built its model. `device_kind` is that of the workers: `"cpu"`, `"gpu"` or
        `"tpu"`. `step` has the arguments of `take_gradient_step`.
        """

    @abstractmethod
    def start(self, shards: "ModelShards", batch: Any) -> "Dispatcher":
        """Starts the workers and servers of a training; returns their dispatcher.

        Workers compile their step for `batch`, a structure of NumPy arrays.
        """

    @abstractmethod
    def stop(self, *, is_clean: bool) -> None:
        """Releases the workers and servers; ends them if the training failed."""
