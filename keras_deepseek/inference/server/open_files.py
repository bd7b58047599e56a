"""The limit of open files of the process: each connection is one."""

import logging

_MOST = 2**16
_RESERVE = 256
"""Files that are no connection: models, logs, admin port, connections that are being refused."""

_logger = logging.getLogger(__name__)


def raise_limit() -> None:
    """Raises the soft limit of open files to the hard one. Many systems have a soft one of 1,024.

    It is for a process that only serves: `select` can't watch files beyond 1,024.
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
