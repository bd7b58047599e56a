"""The environment of each process, in the variables that `ClusterSpec` reads."""

import json
import secrets
from collections.abc import Mapping, Sequence

from keras_deepseek.artifacts.network_address import join_address, parse_address
from keras_deepseek.backend.processes.rendezvous import SECRET_VARIABLE
from keras_deepseek.training.launch.plan import LaunchPlan
from keras_deepseek.training.launch.ports import LOOPBACK, find_free_ports

RESTART = "KERAS_DEEPSEEK_RESTART"
"""Holds how often the job was started again, from 0, with what the launcher itself finds in it."""

STRATEGY = "KERAS_DEEPSEEK_STRATEGY"
"""Holds the strategy of the launcher, where it starts several processes."""

NUM_WORKERS = "KERAS_DEEPSEEK_NUM_WORKERS"
"""Holds how many workers the chief of a parameter server starts."""

NUM_SERVERS = "KERAS_DEEPSEEK_NUM_SERVERS"
"""Holds how many servers it starts."""

RAY_ADDRESS = "RAY_ADDRESS"
"""Ray's own variable: the address of a cluster that runs already."""

_GPUS_OF_JAX = "JAX_LOCAL_DEVICE_IDS"
"""JAX's own variable: which GPUs of its machine a process takes. Without it, each takes all."""


def make_addresses(plan: LaunchPlan) -> list[tuple[str, int]]:
    """Returns the address of rank 0; for TensorFlow on one node, those of all ranks.

    Args:
        plan: `LaunchPlan`.
    """
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
    """Returns the environment of one process.

    Args:
        plan: `LaunchPlan`.
        local_rank: integer. Which process of this node it is.
        addresses: list of hosts and ports, those of `make_addresses`.
        restart: integer. How often the job was started again.
        environ: The environment of the launcher.
    """
    # What started the launcher counted launchers. Rank and world size are new; these are not.
    kept = {
        name: value
        for name, value in environ.items()
        if name not in ("TF_CONFIG", STRATEGY) and not name.startswith("KERAS_DISTRIBUTION_")
    }
    host, port = addresses[0]
    made = {
        "RANK": str(plan.first_rank + local_rank),
        "WORLD_SIZE": str(plan.nnodes * plan.num_started),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(plan.num_started),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "KERAS_BACKEND": plan.backend,
        RESTART: str(restart + int(environ.get(RESTART, "0"))),
    }
    if plan.world_size > 1:
        made[STRATEGY] = plan.strategy
    if _needs_tf_config(plan):
        made["TF_CONFIG"] = _make_tf_config(local_rank, addresses)
    if plan.is_served:
        made[NUM_WORKERS] = str(plan.nproc - plan.num_servers - 1)
        made[NUM_SERVERS] = str(plan.num_servers)
        if plan.ray is not None:
            made[RAY_ADDRESS] = plan.ray
    # A process whose output goes into a pipe would keep its lines back.
    defaults = {"PYTHONUNBUFFERED": "1"}
    if plan.backend == "jax" and plan.num_started > 1:
        defaults[_GPUS_OF_JAX] = str(local_rank)
    return {**defaults, **kept, **made}


def make_secret(plan: LaunchPlan, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variable with the secret of a job, random unless the environment has one.

    Launchers on several nodes can't agree on a random one: there the user sets it, or nobody.
    """
    if environ.get(SECRET_VARIABLE) or plan.nnodes > 1:
        return {}
    return {SECRET_VARIABLE: secrets.token_hex(32)}


def _needs_tf_config(plan: LaunchPlan) -> bool:
    return plan.backend == "tensorflow" and plan.nnodes == 1 and not plan.is_served


def _make_tf_config(local_rank: int, addresses: Sequence[tuple[str, int]]) -> str:
    listed = [join_address(*address) for address in addresses]
    task = {"type": "worker", "index": local_rank}
    return json.dumps({"cluster": {"worker": listed}, "task": task})
