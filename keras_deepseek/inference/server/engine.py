"""The members of a `ServingEngine` that its servers use. They can't import the class itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, Unpack

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.inference.batching.delivery import Settle, Waiter
from keras_deepseek.inference.models.model_repository import ModelRepository
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.served_model import ServedModel
from keras_deepseek.inference.monitoring.engine_monitor import EngineMonitor
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.request_options import RequestOptions

if TYPE_CHECKING:
    from keras_deepseek.inference.server.server import Server


class Engine(Protocol):
    """The parts of a `ServingEngine` that its servers use.

    `ServingEngine` documents its methods.
    """

    @property
    def name(self) -> str:
        """The name of the engine's own model."""

    @property
    def ready(self) -> bool:
        """True if the engine answers requests."""

    @property
    def servers(self) -> Sequence["Server"]:
        """The servers that `ServingEngine.serve` has started."""

    @property
    def monitor(self) -> EngineMonitor:
        """The engine's counters of requests and of loads."""

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The engine's models by name."""

    @property
    def repository(self) -> ModelRepository:
        """The engine's model repository, which loads and unloads models."""

    def start(self) -> None:
        """Warms the models up and starts their threads."""

    def close(self) -> None:
        """Answers the accepted requests, and stops for good."""

    def find(
        self, name: str | None = None, version: int | None = None, label: str = ""
    ) -> ModelVersion:
        """Returns a version of a model."""

    def dispatch(
        self,
        bind: Callable[[Signature], dict[str, Array]],
        settle: Settle,
        trace: RequestTrace | None = None,
        **options: Unpack[RequestOptions],
    ) -> tuple[Callable[[], None], ModelVersion]:
        """Queues a request for a model."""

    def dispatch_async(
        self,
        bind: Callable[[Signature], dict[str, Array]],
        trace: RequestTrace | None = None,
        **options: Unpack[RequestOptions],
    ) -> tuple[Waiter, ModelVersion]:
        """Queues a request, and returns its future."""
