"""The members of a `ServingEngine` that monitoring reads. It can't import the class itself."""

from collections.abc import Mapping
from typing import Protocol

from keras_deepseek.inference.batching.batch_totals import BatchStatistics
from keras_deepseek.inference.monitoring.engine_monitor import EngineMonitor


class CountedCache(Protocol):
    """A response cache that counts its hits, misses and entries."""

    def counts(self) -> tuple[int, int, int]:
        """Returns the numbers of cache hits, cache misses and cache entries."""


class HasState(Protocol):
    """A model version with a state, including one that failed to load."""

    @property
    def state(self) -> str:
        """The version's state in TF Serving's words, such as `"AVAILABLE"`."""


class MonitoredVersion(HasState, Protocol):
    """The parts of a model version that monitoring reads."""

    @property
    def cache(self) -> CountedCache | None:
        """The version's response cache, if it has one."""

    def statistics(self) -> BatchStatistics:
        """Returns the version's counts of batches and rows."""


class MonitoredModel(Protocol):
    """The parts of a model that monitoring reads."""

    @property
    def versions(self) -> Mapping[int, MonitoredVersion]:
        """The model's versions that are loading, available or unloading."""

    @property
    def states(self) -> Mapping[int, HasState]:
        """All versions of the model, including those that failed."""

    @property
    def on_trial(self) -> Mapping[int, float]:
        """The share of requests of each version on trial."""


class MonitoredEngine(Protocol):
    """The parts of an engine that monitoring reads."""

    @property
    def ready(self) -> bool:
        """True if the engine answers requests."""

    @property
    def monitor(self) -> EngineMonitor:
        """The engine's counters of requests and of loads."""

    @property
    def models(self) -> Mapping[str, MonitoredModel]:
        """The engine's models by name."""
