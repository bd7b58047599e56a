"""Reads `TF_CONFIG`: the addresses of all processes, and the task of this one."""

import json
from collections.abc import Mapping
from typing import Any

from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.training.cluster.sources.cluster_hints import (
    ClusterHints,
    Hint,
    check_addresses,
    local_rank_among,
    read_text,
)

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
