"""The limits on the size and the time of requests, and on connections."""

import math
from dataclasses import dataclass, fields

from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.inference.options import refuse_unknown_options


@refuse_unknown_options
@dataclass(frozen=True)
class HttpLimits:
    """The limits of connections, which stop clients from piling up connections and bytes.

    `max_connections`, `connection_seconds`, `unready_seconds`, `settle_seconds` and `grace_seconds`
    hold for gRPC, too.

    Args:
        max_header_bytes: integer. Of the request line and all headers. Above it, the status is 431.
            Defaults to 64 KiB (`65536`).
        max_header_fields: integer. Above it, the status is 431. Defaults to `100`.
        max_connections: integer. Open connections of a port. Above it, a new one gets the status
            503 and is closed; gRPC refuses it. Defaults to `4096`.
        header_seconds: float. For the request line and all headers to arrive. Above it, the status
            is 408. Defaults to `10.0`.
        body_seconds: float. For a body to arrive, beyond the time that `min_body_rate` allows.
            Above it, the status is 408. Defaults to `30.0`.
        min_body_rate: float. Bytes a second. Defaults to `10000.0`.
        idle_seconds: float. That a connection stays open without a request. Defaults to `75.0`.
        write_seconds: float. That a client may read nothing of an answer. Defaults to `30.0`.
        linger_seconds: float. That the server, after `Connection: close`, gives the client to read
            the answer and to close. Defaults to `1.0`.
        settle_seconds: float. That a stopping server still accepts a request on an idle connection:
            the client may have sent it already. Defaults to `0.2`.
        grace_seconds: float. That a stopping server waits for requests in flight, and a closing
            engine with servers for its models. Defaults to `30.0`.
        unready_seconds: float, `0` or more. After a signal that ends the server, for so long only
            readiness checks fail, and all else is answered, with `Connection: close`. Then the
            server stops. Choose a time in which load balancers notice. Defaults to `0.0`.
        connection_seconds: float. The age from which a connection is closed behind an answer, by
            chance up to a tenth later, so that clients connect anew and reach new servers. A gRPC
            connection stays open as long as a stream is. Defaults to `inf`: connections may stay
            open.

    Raises:
        InvalidInputError: A limit is not a positive number.

    Example:

    >>> limits = HttpLimits(idle_seconds=10, grace_seconds=5)
    >>> limits.idle_seconds, limits.header_seconds
    (10, 10.0)
    """

    max_header_bytes: int = 2**16
    max_header_fields: int = 100
    max_connections: int = 4096
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    min_body_rate: float = 10_000.0
    idle_seconds: float = 75.0
    write_seconds: float = 30.0
    linger_seconds: float = 1.0
    settle_seconds: float = 0.2
    grace_seconds: float = 30.0
    unready_seconds: float = 0.0
    connection_seconds: float = math.inf

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type is int:
                check_integer(item.name, value)
            elif item.name == "unready_seconds":
                check_number(item.name, value, minimum=0)
            elif value != math.inf:
                check_number(item.name, value, above=0)

    @property
    def tick_seconds(self) -> float:
        """Seconds between two checks of all time limits: a quarter of the shortest, at most 1."""
        shortest = min(
            self.header_seconds,
            self.body_seconds,
            self.idle_seconds,
            self.write_seconds,
            self.linger_seconds,
        )
        return min(1.0, shortest / 4)
