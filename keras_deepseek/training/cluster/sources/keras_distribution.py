"""Reads the environment variables `KERAS_DISTRIBUTION_*` of `keras.distribution.initialize`."""

from collections.abc import Mapping

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.sources.cluster_hints import (
    ClusterHints,
    Hint,
    check_addresses,
    local_rank_among,
    read_integer,
    read_text,
)

_ADDRESSES = "KERAS_DISTRIBUTION_JOB_ADDRESSES"
_COUNT = "KERAS_DISTRIBUTION_NUM_PROCESSES"
_RANK = "KERAS_DISTRIBUTION_PROCESS_ID"


def read_keras_distribution(environ: Mapping[str, str]) -> ClusterHints:
    """Reads the hints in the environment variables of Keras's distribution.

    One address is the coordinator's; several are those of all ranks.
    """
    world_size = read_integer(environ, _COUNT, minimum=1)
    rank = read_integer(environ, _RANK)
    text = read_text(environ, _ADDRESSES)
    if text is None:
        return ClusterHints(world_size=world_size, rank=rank)
    addresses = [address.strip() for address in text.split(",")]
    check_addresses(_ADDRESSES, addresses)
    local_rank = None
    if len(addresses) > 1:
        if world_size is not None and world_size.value != len(addresses):
            raise InvalidInputError(
                f"{world_size.origin}, and {_ADDRESSES}={text} has {len(addresses)} addresses. "
                "Give the addresses of all processes, or only that of process 0."
            )
        world_size = world_size or Hint(
            len(addresses), f"the {len(addresses)} addresses in {_ADDRESSES}"
        )
        if rank is not None and rank.value < len(addresses):
            local_rank = Hint(local_rank_among(addresses, rank.value), _ADDRESSES, is_derived=True)
    coordinator = Hint(addresses[0], f"{_ADDRESSES}={text}")
    return ClusterHints(world_size, rank, local_rank, coordinator)
