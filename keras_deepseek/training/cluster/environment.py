"""The hints of a launcher's environment about a process's rank, one reader for each launcher.

`cluster_resolver` compares and combines the hints.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from keras_deepseek.artifacts.network_address import join_address, parse_address
from keras_deepseek.errors import InvalidInputError, unknown_name_message

Value = TypeVar("Value")


@dataclass(frozen=True)
class Hint(Generic[Value]):
    """A hinted value, with its origin (the variable or argument and its text) for errors.

    A derived value was computed from something else; a stated value of another source wins over it.
    """

    value: Value
    origin: str
    is_derived: bool = False


@dataclass(frozen=True)
class ClusterHints:
    """All hints of one source about this process; `None` for what it does not say.

    Args:
        local_rank: The rank among the processes of this machine.
        coordinator: The address of rank 0.
        task_type: TensorFlow's name for the kind of this process.
        workers: The addresses of chief and workers.
        servers: The addresses of parameter servers.
    """

    world_size: Hint[int] | None = None
    rank: Hint[int] | None = None
    local_rank: Hint[int] | None = None
    coordinator: Hint[str] | None = None
    task_type: str | None = None
    workers: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()


def read_text(environ: Mapping[str, str], name: str) -> str | None:
    """Returns the text of an environment variable, or `None` if it is unset or empty."""
    return environ.get(name, "").strip() or None


def read_integer(environ: Mapping[str, str], name: str, *, minimum: int = 0) -> Hint[int] | None:
    """Returns the integer of at least `minimum` in an environment variable; `None` if unset."""
    text = read_text(environ, name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < minimum:
        raise InvalidInputError(
            f"The environment variable {name} must hold a whole number of at least {minimum}; "
            f"received {text!r}."
        )
    return Hint(int(text), f"{name}={text}")


def check_addresses(source: str, addresses: Sequence[str]) -> None:
    """Raises an error if addresses of processes are malformed or not unique.

    `source` is the variable that holds them, for the error message.
    """
    counts = Counter(parse_address(f"Each address in {source}", text) for text in addresses)
    if twice := [f"{host}:{port}" for (host, port), count in counts.items() if count > 1]:
        raise InvalidInputError(
            f"{source} gives the address {twice[0]} to more than one process. Give each process an "
            "address of its own."
        )


def local_rank_among(addresses: Sequence[str], rank: int) -> int:
    """Returns a process's rank on its host: the number of lower ranks there.

    `addresses` are those of all processes, by rank.
    """
    hosts = [parse_address("An address", address)[0] for address in addresses]
    return hosts[:rank].count(hosts[rank])


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


_TASK_TYPES = ("chief", "worker", "ps")
"""In the order of their ranks."""


def read_tf_config(environ: Mapping[str, str]) -> ClusterHints:
    """Reads the hints of `TF_CONFIG`.

    The chief has rank 0, then come workers, then parameter servers.
    """
    text = read_text(environ, "TF_CONFIG")
    if text is None:
        return ClusterHints()
    config = _parse(text)
    cluster = _check_cluster(config.get("cluster") or {})
    if not cluster:  # For TensorFlow, this is a single process.
        return ClusterHints()
    task_type, index = _check_task(config.get("task"), cluster)
    addresses = [address for kind in _TASK_TYPES for address in cluster.get(kind, [])]
    earlier_types = _TASK_TYPES[: _TASK_TYPES.index(task_type)]
    rank = sum(len(cluster.get(kind, [])) for kind in earlier_types) + index
    return ClusterHints(
        world_size=Hint(len(addresses), f"the {len(addresses)} addresses in TF_CONFIG"),
        rank=Hint(rank, f"rank {rank}, which is {task_type} {index} in TF_CONFIG"),
        local_rank=Hint(local_rank_among(addresses, rank), "TF_CONFIG", is_derived=True),
        # TensorFlow itself listens there. An explicit other address may be for another service.
        coordinator=Hint(addresses[0], "TF_CONFIG", is_derived=True),
        task_type=task_type,
        workers=tuple(cluster.get("chief", []) + cluster.get("worker", [])),
        servers=tuple(cluster.get("ps", [])),
    )


def _parse(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise InvalidInputError(
            "TF_CONFIG must hold JSON as in "
            '{"cluster": {"worker": ["HOST:PORT"]}, "task": {"type": "worker", "index": 0}}; '
            f"received {text!r}."
        )
    return config


def _check_cluster(cluster: Any) -> dict[str, list[str]]:
    is_listed = isinstance(cluster, dict) and all(
        isinstance(addresses, list) for addresses in cluster.values()
    )
    if not is_listed:
        raise InvalidInputError(
            "The cluster in TF_CONFIG must hold a list of addresses for each type of task; "
            f"received {cluster!r}."
        )
    listed = {kind: addresses for kind, addresses in cluster.items() if kind != "evaluator"}
    for kind in listed:
        if kind not in _TASK_TYPES:
            raise InvalidInputError(unknown_name_message("task in TF_CONFIG", kind, _TASK_TYPES))
    check_addresses("TF_CONFIG", [text for addresses in listed.values() for text in addresses])
    if len(listed.get("chief", [])) > 1:
        raise InvalidInputError(f"TF_CONFIG names more than one chief: {listed['chief']!r}.")
    if listed and not listed.get("chief") and not listed.get("worker"):
        raise InvalidInputError(f"TF_CONFIG names neither chief nor worker: {cluster!r}.")
    return listed


def _check_task(task: Any, cluster: dict[str, list[str]]) -> tuple[str, int]:
    kind = task.get("type") if isinstance(task, dict) else None
    if kind == "evaluator":
        raise InvalidInputError(
            "TF_CONFIG makes this process an evaluator, which takes no part in a training. Start "
            "it without a distributed_strategy, and evaluate there."
        )
    index = str(task.get("index", "")) if isinstance(task, dict) else ""
    addresses = cluster.get(kind, []) if isinstance(kind, str) else []
    if not index.isdigit() or int(index) >= len(addresses):
        counts = ", ".join(f"{len(cluster[name])} {name}" for name in cluster)
        raise InvalidInputError(
            "The task in TF_CONFIG must say which process of its cluster this one is, with type "
            f"and index; received {task!r} beside a cluster of {counts}."
        )
    return str(kind), int(index)


def read_kubernetes(environ: Mapping[str, str]) -> ClusterHints:
    """Reads the rank of this pod from `JOB_COMPLETION_INDEX`.

    The number of pods and the address come from the arguments, or from `WORLD_SIZE`, `MASTER_ADDR`
    and `MASTER_PORT` in the Job's manifest.
    """
    rank = read_integer(environ, "JOB_COMPLETION_INDEX")
    if rank is None:
        return ClusterHints()
    return ClusterHints(rank=rank, local_rank=Hint(0, rank.origin, is_derived=True))
