"""The members of a `ServingEngine` that monitoring reads. It can't import the class itself."""

from collections.abc import Mapping
from typing import Any, Protocol, Unpack

from keras_deepseek.inference.batching.batch_totals import BatchStatistics
from keras_deepseek.inference.batching.future_delivery import Answer
from keras_deepseek.inference.monitoring.engine_monitor import EngineMonitor
from keras_deepseek.inference.request_options import RequestOptions


class CountedCache(Protocol):
    """A response cache that counts its hits, misses and entries."""

    def counts(self) -> tuple[int, int, int]:
        """Returns the numbers of hits, of misses and of entries."""


class HasState(Protocol):
    """A version, also one that failed to load."""

    @property
    def state(self) -> str:
        """TF Serving's word for the state, as in `"AVAILABLE"`."""


class MonitoredVersion(HasState, Protocol):
    """A version of a model."""

    @property
    def cache(self) -> CountedCache | None:
        """The response cache, if it has one."""

    def statistics(self) -> BatchStatistics:
        """Returns the counts of batches and rows."""


class MonitoredModel(Protocol):
    """A model with its versions by number."""

    @property
    def versions(self) -> Mapping[int, MonitoredVersion]:
        """The versions that are loading, available or unloading."""

    @property
    def states(self) -> Mapping[int, HasState]:
        """The same, and the versions that failed."""

    @property
    def on_trial(self) -> Mapping[int, float]:
        """The share of requests of each version on trial."""


class MonitoredEngine(Protocol):
    """An engine whose numbers are read."""

    @property
    def ready(self) -> bool:
        """True if requests are answered."""

    @property
    def monitor(self) -> EngineMonitor:
        """The counters of requests and of loads."""

    @property
    def models(self) -> Mapping[str, MonitoredModel]:
        """The models by name."""


class AnsweringEngine(Protocol):
    """An engine that requests are sent to again."""

    def start(self) -> None:
        """Starts the engine, once."""

    def submit(self, x: Any, **options: Unpack[RequestOptions]) -> Answer:
        """Returns the future of a request's outputs."""
