"""The number of CPUs that a container may use.

Runtimes make a thread for each CPU of the machine. Under a quota of two CPUs on a machine of 64,
those threads are stopped most of the time.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path


def find_cpu_limit(
    mount: Path = Path("/sys/fs/cgroup"), memberships: Path = Path("/proc/self/cgroup")
) -> int:
    """Returns the CPUs that this process may use: its quota in cgroups, or its CPU affinity.

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
    """Yields the quota of one cgroup, if it has one."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        yield int(quota) / int(period)  # Without a quota, it says "max".
    with contextlib.suppress(OSError, ValueError):
        quota, period = (
            (folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
        )
        if int(quota) > 0:
            yield int(quota) / int(period)
