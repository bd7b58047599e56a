"""The interface between the chief's bookkeeping and what workers and servers run on."""

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
    """The process of a worker or a server ended before it answered."""


class Workers(ABC):
    """Transport of batches to workers, and of values to and from servers.

    The `Dispatcher` decides which worker computes which batch, and when. A future is whatever
    the engine uses for one. Methods that return a future return at once.
    """

    num_workers: int
    """The number of batches that can be computed at once."""

    num_servers: int

    @abstractmethod
    def set_up_worker(self, worker: int, variables: Sequence[Array]) -> Any:
        """Returns a future that is done when a worker is ready, at first or after a restart.

        `variables` are the values of all variables of the chief's model.
        """

    @abstractmethod
    def compute(self, worker: int, task: Task) -> Any:
        """Sends a batch to a worker; returns the future that `finish` reads."""

    @abstractmethod
    def finish(self, worker: int, task: Task, future: Any) -> Result | None:
        """Returns the result of a computed batch and starts its update on the servers.

        `Result.pushes` holds the futures of the servers' answers. It is empty if the update is
        already made, and `None` if a server has lost its values. Returns `None` if the worker has
        restarted and holds no model. After a `ProcessEndedError` the batch must be computed again.
        """

    @abstractmethod
    def restart_workers(self, workers: Sequence[int]) -> None:
        """Kills workers that do not answer; the engine starts them again."""

    @abstractmethod
    def set_up_server(self, server: int, values: ShardValues) -> Any:
        """Gives a server its values; returns the future of the ID of its life.

        A server that restarts has a new ID.
        """

    @abstractmethod
    def read_server(self, server: int) -> Any:
        """Returns the future of the server's `ShardValues`; `None` if it has lost them."""

    def read_life(self, server: int) -> Any:
        """Returns the future of the ID of the server's life; `None` if it has lost its values."""
        raise NotImplementedError("The servers of this engine do not restart.")

    def restart_server(self, server: int) -> None:
        """Kills a server that does not answer; the engine starts it again without values."""
        raise NotImplementedError("The servers of this engine do not restart.")

    @abstractmethod
    def wait(self, futures: Sequence[Any], timeout: float) -> list[Any]:
        """Returns the futures that are done, at least one.

        An empty list after `timeout` seconds.
        """

    @abstractmethod
    def result(self, future: Any) -> Any:
        """Returns the value of a future that is done, except one of `compute`.

        Raises a `ProcessEndedError` if the process that was to answer ended.
        """


class Engine(ABC):
    """A way to run workers and servers: Ray, or TensorFlow's coordinator."""

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
        """Starts the workers and servers of one training; returns their dispatcher.

        Workers compile their step for `batch`, a structure of NumPy arrays.
        """

    @abstractmethod
    def stop(self, *, is_clean: bool) -> None:
        """Releases the workers and servers; ends them if the training failed."""
