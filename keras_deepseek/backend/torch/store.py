"""The rendezvous of ranks in `torch.distributed.TCPStore`."""

import contextlib
import json
import secrets
import socket
import time
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

from keras_deepseek.artifacts.network_address import parse_address
from keras_deepseek.backend.processes.rendezvous import (
    listen_at,
    missing_ranks_error,
    other_size_reason,
    refused_error,
    same_rank_reason,
)

_PAUSE = 0.05
"""Seconds between two looks at the store. PyTorch's own waiting logs a stack trace at its end."""

_GRACE = 5.0
"""Seconds that ranks have to read which others are missing, before rank 0 ends the store."""


def open_store(coordinator: str, world_size: int, rank: int, timeout: float) -> dist.Store:
    """Returns the `TCPStore` of rank 0 once all ranks have come, within `timeout` seconds.

    `coordinator` is `HOST:PORT` of rank 0, which listens on loopback only if that is loopback. If a
    rank did not come, each that came raises `PeerLostError` with the names of all that are missing.
    A rank with another world size, or that another process has too, raises `InvalidInputError`.
    """
    host, port = parse_address("`coordinator`", coordinator)
    deadline = time.monotonic() + timeout
    missing: list[int] = [0]
    if rank == 0:
        descriptor = listen_at(host, port, world_size).detach()
        store = _make_store(host, port, world_size, timeout, descriptor)
        store.set("world_size", str(world_size))
        missing = _wait_for_ranks(store, world_size, deadline)
    elif _wait_for_listener(host, port, deadline):
        with contextlib.suppress(RuntimeError):  # If rank 0 ends meanwhile, it is missing.
            store = _make_store(host, port, world_size, timeout, None)
            # Rank 0 may have started later than this rank, and decides at its own deadline.
            missing = _report(store, rank, world_size, deadline + timeout + _GRACE)
    if missing:
        raise missing_ranks_error(coordinator, world_size, timeout, missing)
    return store


def _make_store(
    host: str, port: int, world_size: int, timeout: float, descriptor: int | None
) -> dist.Store:
    return dist.TCPStore(
        host,
        port,
        world_size,
        is_master=descriptor is not None,
        timeout=timedelta(seconds=max(1.0, timeout)),
        wait_for_workers=False,
        master_listen_fd=descriptor,
    )


def _wait_for_listener(host: str, port: int, deadline: float) -> bool:
    """Returns True once rank 0 listens. PyTorch's own waiting logs stack traces at its end."""
    while (seconds := deadline - time.monotonic()) > 0:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, port), min(1.0, seconds)),
        ):
            return True
        time.sleep(_PAUSE)
    return False


def _wait_for_ranks(store: dist.Store, world_size: int, deadline: float) -> list[int]:
    """Waits for all ranks on rank 0; returns the missing ones, and tells the others who came."""
    keys = [f"came/{rank}" for rank in range(1, world_size)]
    _wait_for(store, keys, deadline)
    tokens = ["", *(store.get(key).decode() if store.check([key]) else None for key in keys)]
    store.set("tokens", json.dumps(tokens))
    missing = _find_missing(tokens)
    if missing:  # The store ends with this process.
        present = [f"read/{rank}" for rank in range(1, world_size) if rank not in missing]
        _wait_for(store, present, time.monotonic() + _GRACE)
    return missing


def _report(store: dist.Store, rank: int, world_size: int, deadline: float) -> list[int]:
    """Tells rank 0 that this rank has come; returns the ranks that are missing."""
    if not _wait_for(store, ["world_size"], deadline):
        return [0]
    size_of_rank_0 = int(store.get("world_size"))
    if world_size != size_of_rank_0:
        raise refused_error(other_size_reason(rank, world_size, size_of_rank_0))
    own_token = secrets.token_hex(8)
    store.set(f"came/{rank}", own_token)
    while not store.check(["tokens"]):
        # Of two processes of one rank the newer one stays: the older one may have ended.
        if store.get(f"came/{rank}").decode() != own_token:
            raise refused_error(same_rank_reason(rank))
        if time.monotonic() > deadline:
            return [0]
        time.sleep(_PAUSE)
    tokens = json.loads(store.get("tokens"))
    store.set(f"read/{rank}", "")
    if tokens[rank] not in (own_token, None):
        raise refused_error(same_rank_reason(rank))
    return _find_missing(tokens)


def _find_missing(tokens: Sequence[str | None]) -> list[int]:
    return [rank for rank, token in enumerate(tokens) if token is None]


def _wait_for(store: dist.Store, keys: list[str], deadline: float) -> bool:
    """Returns True once the `TCPStore` has all keys, and False after the deadline."""
    while keys and not store.check(keys):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True
