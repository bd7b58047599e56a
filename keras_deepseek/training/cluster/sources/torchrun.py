"""Reads the environment variables that torchrun and `keras-deepseek launch` set."""

from collections.abc import Mapping

from keras_deepseek.artifacts.network_address import join_address, parse_address
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.sources.cluster_hints import (
    ClusterHints,
    Hint,
    read_integer,
    read_text,
)


def read_torchrun(environ: Mapping[str, str]) -> ClusterHints:
    """Reads `WORLD_SIZE`, `RANK`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`."""
    return ClusterHints(
        world_size=read_integer(environ, "WORLD_SIZE", minimum=1),
        rank=read_integer(environ, "RANK"),
        local_rank=read_integer(environ, "LOCAL_RANK"),
        coordinator=_read_address(environ),
    )


def starts_each_process(environ: Mapping[str, str]) -> bool:
    """Returns True if the launcher of this process starts one process for each rank.

    Then SLURM or Kubernetes may have started the launchers, and their counts are not those of
    processes.
    """
    return all(read_text(environ, name) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "RANK"))


def _read_address(environ: Mapping[str, str]) -> Hint[str] | None:
    host, port = read_text(environ, "MASTER_ADDR"), read_text(environ, "MASTER_PORT")
    if host is None and port is None:
        return None
    origin = f"MASTER_ADDR={host or ''} with MASTER_PORT={port or ''}"
    if host is None or port is None:
        raise InvalidInputError(f"{origin} is half of an address. Set both of them, or neither.")
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return Hint(join_address(*parse_address(origin, f"{bracketed}:{port}")), origin)
