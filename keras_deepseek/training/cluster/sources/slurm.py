"""Reads the environment variables that SLURM sets for each task of an `srun`."""

from collections.abc import Mapping

from keras_deepseek.artifacts.network_address import join_address
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.sources.cluster_hints import (
    ClusterHints,
    Hint,
    read_integer,
    read_text,
)
from keras_deepseek.training.cluster.sources.slurm_nodes import expand_node_list

_STEP = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NODELIST")
"""The variables that only `srun` sets. A batch script has all others, and looks like task 0."""

_FIRST_PORT, _NUM_PORTS = 12_000, 20_000
"""The ports are below 32768, where Linux's range of temporary ports begins."""


def read_slurm(environ: Mapping[str, str]) -> ClusterHints:
    """Reads this task's number, the number of tasks, and the first node as coordinator.

    If there are several tasks, this process must be one of them.
    """
    world_size = read_integer(environ, "SLURM_NTASKS", minimum=1)
    rank = read_integer(environ, "SLURM_PROCID")
    if not is_slurm_task(environ):
        if world_size is not None and world_size.value > 1:
            raise InvalidInputError(
                f"{world_size.origin}, and this process is none of these tasks: the others would "
                "never start. Start the script with srun, or with keras-deepseek launch; or unset "
                "SLURM_NTASKS."
            )
        return ClusterHints()
    return ClusterHints(
        world_size=world_size,
        rank=rank,
        local_rank=read_integer(environ, "SLURM_LOCALID"),
        coordinator=_derive_coordinator(environ),
    )


def is_slurm_task(environ: Mapping[str, str]) -> bool:
    """Returns True if `srun` started this process, and False in a batch script."""
    is_later = read_text(environ, "SLURM_PROCID") not in (None, "0")
    return is_later or any(read_text(environ, name) for name in _STEP)


def _derive_coordinator(environ: Mapping[str, str]) -> Hint[str] | None:
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    name = next((name for name in names if read_text(environ, name)), None)
    job = read_integer(environ, "SLURM_JOB_ID") or read_integer(environ, "SLURM_JOBID")
    if name is None or job is None:
        return None
    step = read_integer(environ, "SLURM_STEP_ID") or read_integer(environ, "SLURM_STEPID")
    # Two steps of a job may run on the same node.
    number = 10 * job.value + (step.value if step else 0)
    host = next(expand_node_list(name, environ[name]))
    address = join_address(host, _FIRST_PORT + number % _NUM_PORTS)
    return Hint(address, f"{name}={environ[name]}", is_derived=True)
