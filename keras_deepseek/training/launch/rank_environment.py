"""The environment variables of each process, from which `ClusterSpec` is read."""

import json
import secrets
from collections.abc import Mapping, Sequence

from keras_deepseek.artifacts.network_address import join_address, parse_address
from keras_deepseek.backend.processes.rendezvous import SECRET_VARIABLE, read_join_secret
from keras_deepseek.training.launch.plan import LOOPBACK, LaunchPlan, find_free_ports

RESTART = "KERAS_DEEPSEEK_RESTART"
"""The variable with the number of restarts of the job, including those of an outer launcher."""

STRATEGY = "KERAS_DEEPSEEK_STRATEGY"
"""The variable with the strategy of the launcher, if it starts several processes."""

NUM_WORKERS = "KERAS_DEEPSEEK_NUM_WORKERS"
"""The variable with the number of workers that the chief of a parameter server starts."""

NUM_SERVERS = "KERAS_DEEPSEEK_NUM_SERVERS"
"""The variable with the number of servers that it starts."""

RAY_ADDRESS = "RAY_ADDRESS"
"""Ray's own variable: the address of a running cluster."""

_GPUS_OF_JAX = "JAX_LOCAL_DEVICE_IDS"
"""JAX's own variable: the GPUs that a process uses. Without it, each process takes all."""


def make_addresses(plan: LaunchPlan) -> list[tuple[str, int]]:
    """Returns the address of rank 0, or the addresses of all ranks for TensorFlow on one node."""
    first = [parse_address("--coordinator", plan.coordinator)] if plan.coordinator else []
    num_all = plan.nproc if _needs_tf_config(plan) else 1
    free = find_free_ports(num_all - len(first))
    return first + [(LOOPBACK, port) for port in free]


def make_environment(
    plan: LaunchPlan,
    local_rank: int,
    addresses: Sequence[tuple[str, int]],
    restart: int,
    environ: Mapping[str, str],
) -> dict[str, str]:
    """Returns the environment variables of one rank's process.

    `addresses` come from `make_addresses`. `restart` counts the restarts of the job. `environ` is
    that of the launcher.
    """
    # These variables may be about the launchers, and not about the processes that they start.
    inherited = {
        name: value
        for name, value in environ.items()
        if name not in ("TF_CONFIG", STRATEGY) and not name.startswith("KERAS_DISTRIBUTION_")
    }
    host, port = addresses[0]
    variables = {
        "RANK": str(plan.first_rank + local_rank),
        "WORLD_SIZE": str(plan.nnodes * plan.num_started),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(plan.num_started),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        RESTART: str(restart + int(environ.get(RESTART, "0"))),
    }
    if plan.world_size > 1:
        variables[STRATEGY] = plan.strategy
    if _needs_tf_config(plan):
        variables["TF_CONFIG"] = _make_tf_config(local_rank, addresses)
    if plan.is_served:
        variables[NUM_WORKERS] = str(plan.nproc - plan.num_servers - 1)
        variables[NUM_SERVERS] = str(plan.num_servers)
        if plan.ray is not None:
            variables[RAY_ADDRESS] = plan.ray
    # Else a process whose output goes into a pipe would buffer its lines.
    defaults = {"PYTHONUNBUFFERED": "1"}
    if plan.backend == "jax" and plan.num_started > 1:
        defaults[_GPUS_OF_JAX] = str(local_rank)
    return {**defaults, **inherited, **variables}


def make_secret(plan: LaunchPlan, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment variable with the job's secret, random unless already set.

    Launchers on several nodes can't agree on a random one: there the user sets it, or nobody.
    """
    if read_join_secret(environ) or plan.nnodes > 1:
        return {}
    return {SECRET_VARIABLE: secrets.token_hex(32)}


def _needs_tf_config(plan: LaunchPlan) -> bool:
    return plan.backend == "tensorflow" and plan.nnodes == 1 and not plan.is_served


def _make_tf_config(local_rank: int, addresses: Sequence[tuple[str, int]]) -> str:
    listed = [join_address(*address) for address in addresses]
    task = {"type": "worker", "index": local_rank}
    return json.dumps({"cluster": {"worker": listed}, "task": task})
