"""The CPUs, the memory and the open files that a container or a system allows to this process."""

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

_MOST = 2**16
_RESERVE = 256
"""Files that are no connection: models, logs, admin port, connections that are being refused."""

_logger = logging.getLogger(__name__)


def find_cpu_limit(
    mount: Path = Path("/sys/fs/cgroup"), memberships: Path = Path("/proc/self/cgroup")
) -> int:
    """Returns the CPUs that this process may use: its quota in cgroups, or its CPU affinity.

    Runtimes make a thread for each CPU of the machine. Under a quota of two CPUs on a machine of
    64, those threads are stopped most of the time.

    `mount` is where the cgroups are mounted, and `memberships` lists those of this process.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # Linux alone has it.
        allowed = os.cpu_count() or 1
    return max(1, min([allowed, *map(math.ceil, _read_quotas(mount, memberships))]))


def _read_quotas(mount: Path, memberships: Path) -> Iterator[float]:
    """Yields the quotas of this process's cgroups and of those around them, in CPUs."""
    try:
        lines = memberships.read_text(encoding="utf-8").splitlines()
    except OSError:  # There are no cgroups.
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / "cpu" if controllers else mount  # Version 1 names controllers.
        cgroup = root / path.lstrip("/")
        for folder in (cgroup, *cgroup.parents):
            yield from _read_quota(folder)
            if folder == root:
                break


def _read_quota(folder: Path) -> Iterator[float]:
    """Yields the quota of one cgroup in CPUs, if it has one."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        yield int(quota) / int(period)  # Without a quota, it says "max".
    with contextlib.suppress(OSError, ValueError):
        quota, period = (
            (folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
        )
        if int(quota) > 0:
            yield int(quota) / int(period)


def find_memory() -> int | None:
    """Returns the bytes of the machine's memory, or `None` if the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no such call.
        return None


def raise_limit() -> None:
    """Raises the soft limit of open files, often 1,024, to the hard one.

    Call it only in a process that serves: `select`, which others use, can't watch more than 1,024.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def most_connections(num_connections: int, ports: int) -> int:
    """Returns the connections of each of some ports that the limit of open files allows."""
    try:
        import resource
    except ImportError:
        return num_connections
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return num_connections
    allowed = max((limit - min(_RESERVE, limit // 2)) // ports, 1)
    if allowed >= num_connections:
        return num_connections
    _logger.warning(
        "Only %d connections of a port are accepted, in place of %d: this process may open %d "
        "files. Raise that limit (ulimit -n, LimitNOFILE in systemd).",
        *(allowed, num_connections, limit),
    )
    return allowed
