"""Keras's distributions, which don't run on PyTorch."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras

from keras_deepseek.artifacts.errors import InvalidInputError, NotSupportedError
from keras_deepseek.backend.keras_internals import Distribution
from keras_deepseek.backend.processes import Replicas


def spread_over_devices() -> Distribution | None:
    """Returns a distribution of batches over all devices; `None` where there is one alone."""
    return None


def replicate_over_devices(strategy: Any) -> Replicas | None:
    """Returns copies of a step on several devices of this process; `None` where there is one."""
    if strategy == "allreduce":
        return None
    raise InvalidInputError(
        "distributed_strategy is 'allreduce', 'parameter_server', or one of Keras's distributions; "
        f"received {strategy!r}."
    )


def distributed(
    distribution: Distribution,
) -> AbstractContextManager[None]:
    """Makes Keras create variables and place batches by a distribution until the block ends."""
    raise NotSupportedError(
        f"{type(distribution).__name__} is one of Keras's distributions, which run on JAX; Keras "
        "runs on PyTorch. Set KERAS_BACKEND=jax, or leave distributed_strategy out."
    )


def count_replicas(model: keras.Model) -> int:
    """Returns how many copies of a model `tf.distribute` keeps, each for part of a batch."""
    return 1


def place_variables(variables: Sequence[keras.Variable]) -> None:
    """Moves variables that were made outside to where the distribution around wants them."""
    # There is none.


def place_batch(batch: Any) -> Any:
    """Returns a batch where the distribution around wants it; as it is, where there is none."""
    return batch
