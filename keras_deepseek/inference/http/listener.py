"""Accepts the connections of a listening socket, and makes a protocol for each.

asyncio's own server, when it closes, forgets connections that it has accepted but not yet given to
a protocol: their clients would wait for ever. This one loses none.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable

_logger = logging.getLogger(__name__)

_AT_A_TIME = 100
"""Connections that are accepted before existing ones get their turn."""

_REST_SECONDS = 1.0
"""The pause after an error such as too many open files, where a retry at once would fail."""

_PROBES = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
"""They find a client whose machine is gone after a minute and a half, also during a request."""


class Listener:
    """A listening socket on the running event loop, with limits in seconds for TLS.

    `count_free_slots` returns the number of connections for which there is room.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        ssl_context: ssl.SSLContext | None,
        handshake_seconds: float,
        farewell_seconds: float,
        count_free_slots: Callable[[], int],
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._ssl_context = ssl_context
        self._seconds = (handshake_seconds, farewell_seconds) if ssl_context else (None, None)
        self._count_free_slots = count_free_slots
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[None]] = set()
        self._resume_timer: asyncio.TimerHandle | None = None
        listener.settimeout(0)

    def start(self) -> None:
        """Begins to accept connections."""
        self._loop.add_reader(self._listener, self._accept)

    async def stop(self) -> None:
        """Closes the port. Returns when all accepted connections have their protocol."""
        if self._resume_timer is not None:
            self._resume_timer.cancel()
        self._loop.remove_reader(self._listener)
        while self._accept():
            pass
        self._listener.close()
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _accept(self) -> bool:
        """Accepts some of the connections that wait at the socket.

        Returns true if there may be more.
        """
        for _ in range(_AT_A_TIME):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return False
            except ConnectionAbortedError:  # The client has hung up already.
                continue
            except OSError:
                _logger.exception("Can't accept connections.")
                self._loop.remove_reader(self._listener)
                self._resume_timer = self._loop.call_later(_REST_SECONDS, self.start)
                return False
            if self._count_free_slots() <= len(self._connecting):
                connection.close()
                continue
            task = self._loop.create_task(self._connect(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        return True

    async def _connect(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        probe_dead_peers(connection)
        handshake_seconds, farewell_seconds = self._seconds
        # A client without TLS, or without a valid certificate, needs no traceback in the log.
        with contextlib.suppress(OSError):
            await self._loop.connect_accepted_socket(
                self._make_protocol,
                connection,
                ssl=self._ssl_context,
                ssl_handshake_timeout=handshake_seconds,
                ssl_shutdown_timeout=farewell_seconds,
            )


def probe_dead_peers(connection: socket.socket) -> None:
    """Turns on TCP keep-alive, so that the kernel notices when a client's machine is gone."""
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES:
            if hasattr(socket, name):  # Not all systems have these options.
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
