"""The options of one model, for `ServingEngine` and `ServingEngine.load`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from keras_deepseek.artifacts.export_arguments import check_custom_sources
from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.arguments import check_batch_size, check_seconds
from keras_deepseek.inference.batching.padding import Padding


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of one model. `ServingEngine` explains each of them.

    Args:
        batch_size: `"dynamic"`, or an integer up to `max_batch_size`. Defaults to `"dynamic"`.
        max_batch_size: integer. Defaults to `32`.
        max_wait: float. Seconds, for a fixed `batch_size` alone. Defaults to `None`: 0.005 seconds.
        max_queue_rows: integer. Defaults to `None`: as many as time and memory allow.
        target_latency: float. Seconds. Defaults to `None`.
        replicas: integer. Defaults to `1`.
        isolated: boolean. Defaults to `False`.
        batch_timeout: float. Seconds. Defaults to `60.0`.
        padding: `Padding`. Defaults to `None`: requests of different lengths don't share batches.
        warm_up: boolean. Defaults to `True`.
        cache_entries: integer. Defaults to `0`.
        custom_objects_from: sequence of module names or `.py` files. Defaults to `()`.
        threads: integer. Defaults to `None`: as many as the runtime chooses.

    Raises:
        InvalidInputError: An option has a wrong value.

    Example:

    >>> import keras
    >>> from keras_deepseek.inference import ServingEngine
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> with ServingEngine(model, max_batch_size=1) as engine:
    ...     engine.load(model, name="small", options=ModelOptions(max_batch_size=2)).number
    1
    """

    batch_size: int | Literal["dynamic"] = "dynamic"
    max_batch_size: int = 32
    max_wait: float | None = None
    max_queue_rows: int | None = None
    target_latency: float | None = None
    replicas: int = 1
    isolated: bool = False
    batch_timeout: float = 60.0
    padding: Padding | None = None
    warm_up: bool = True
    cache_entries: int = 0
    custom_objects_from: Sequence[str | os.PathLike[str]] = ()
    threads: int | None = None

    def __post_init__(self) -> None:
        check_integer("max_batch_size", self.max_batch_size)
        if self.max_queue_rows is not None:
            check_integer("max_queue_rows", self.max_queue_rows)
        check_batch_size(self.batch_size, self.max_batch_size)
        if self.max_wait is not None:
            check_seconds("max_wait", self.max_wait, or_zero=True)
            if self.batch_size == "dynamic":
                raise InvalidInputError(
                    "Received `max_wait` without a fixed `batch_size`. Pass batch_size=N, or "
                    "remove max_wait: dynamic batches choose how long to wait."
                )
        check_integer("replicas", self.replicas)
        check_integer("cache_entries", self.cache_entries, minimum=0)
        if self.threads is not None:
            check_integer("threads", self.threads)
        if self.target_latency is not None:
            check_seconds("target_latency", self.target_latency)
        check_boolean("isolated", self.isolated)
        check_seconds("batch_timeout", self.batch_timeout)
        if not isinstance(self.padding, Padding | None):
            raise InvalidInputError(
                "`padding` must be a `Padding`, as in Padding(lengths=(16, 32), values="
                f"{{'tokens': 0}}, masks='by_value'), or None; received {self.padding!r}."
            )
        check_boolean("warm_up", self.warm_up)
        sources = check_custom_sources(self.custom_objects_from)
        object.__setattr__(self, "custom_objects_from", sources)
