"""Finds the network interface of this machine that leads to another machine."""

import contextlib
import socket
import struct
import sys

from keras_deepseek.artifacts.network_address import is_loopback

_SIOCGIFADDR = 0x8915
"""Linux's request for the address of an interface, in the last four of 24 bytes."""


def find_interface(host: str, port: int) -> str | None:
    """Returns the name of the interface that leads to a host, or `None` if it is unknown.

    Other than for loopback, it works on Linux, for the first IPv4 address of an interface.
    """
    if is_loopback(host):
        return "lo0" if sys.platform == "darwin" else "lo"
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # A UDP `connect` sends nothing.
        local_address = probe.getsockname()[0]
        for _, interface in socket.if_nameindex():
            if _read_address(probe, interface) == local_address:
                return interface
    return None


def _read_address(probe: socket.socket, interface: str) -> str | None:
    """Returns the IPv4 address of a network interface, or `None` if it has none."""
    if sys.platform != "linux":
        return None
    import fcntl

    request = struct.pack("256s", interface.encode())
    with contextlib.suppress(OSError):  # The interface has no address.
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
    return None
