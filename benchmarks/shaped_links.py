"""Network namespaces of this machine, each behind a link of a given speed: machines on one switch.

Linux and root alone: `ip netns` makes them, and `tc ... tbf` shapes what each of them sends and is
sent. `scaling.py` starts a process of a training in each, and so does a test that cuts their links.
"""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BURSTS_A_SECOND = 250
_LEAST_BURST = 16_000  # Bytes: some packets.
_NAMES = Path("/etc/netns")


@dataclass(frozen=True)
class Host:
    """A namespace with one link to a switch.

    Args:
        namespace: string. Its name.
        switch: string. The namespace of the switch.
        address: string. Its IPv4 address, which the other hosts reach.
    """

    namespace: str
    switch: str
    address: str

    interface = "eth0"
    """The link's name at the host; that at the switch is the host's."""

    def command(self, *arguments: str) -> list[str]:
        """Returns the command that runs another one in the namespace."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def bytes_sent(self) -> int:
        """Returns how many bytes the link has sent since it was made, headers included."""
        path = f"/sys/class/net/{self.interface}/statistics/tx_bytes"
        return int(_run(*self.command("cat", path)))

    def cut(self, *, is_cut: bool = True) -> None:
        """Pulls the link out of the switch, or puts it back.

        Args:
            is_cut: boolean. Which of them. Defaults to `True`.
        """
        state = "down" if is_cut else "up"
        _run("ip", "netns", "exec", self.switch, "ip", "link", "set", self.namespace, state)

    def shape(self, megabits: float | None) -> None:
        """Gives the link a speed in both directions, in Mbit/s; `None` for that of memory."""
        for namespace, device in (
            (self.namespace, self.interface),
            (self.switch, self.namespace),
        ):
            control = ["ip", "netns", "exec", namespace, "tc", "qdisc"]
            if megabits is None:
                _run(*control, "replace", "dev", device, "root", "pfifo_fast")
                continue
            burst = max(_LEAST_BURST, int(megabits * 1e6 / 8 / _BURSTS_A_SECOND))
            rate = ["rate", f"{megabits}mbit", "burst", f"{burst}", "latency", "200ms"]
            _run(*control, "replace", "dev", device, "root", "tbf", *rate)


@contextlib.contextmanager
def shaped_links(num_hosts: int, megabits: float | None) -> Iterator[list[Host]]:
    """Yields hosts on one switch, each behind a link of so many Mbit/s in each direction.

    They are taken down when the block ends.

    Args:
        num_hosts: integer.
        megabits: float, or `None` for links as fast as memory.
    """
    name = f"kds{os.getpid()}"  # 15 characters are the most that an interface may have.
    switch = f"{name}sw"
    hosts = [Host(f"{name}n{index}", switch, f"10.77.0.{index + 1}") for index in range(num_hosts)]
    in_switch = ["ip", "netns", "exec", switch, "ip", "link"]
    try:
        _run("ip", "netns", "add", switch)
        _run(*in_switch, "add", "bridge", "type", "bridge")
        _run(*in_switch, "set", "bridge", "up")
        for host in hosts:
            _run("ip", "netns", "add", host.namespace)
            ends = ["netns", switch, "type", "veth", "peer", "name", host.interface]
            _run("ip", "link", "add", host.namespace, *ends, "netns", host.namespace)
            _run(*in_switch, "set", host.namespace, "master", "bridge", "up")
            address = ["address", "add", f"{host.address}/24", "dev", host.interface]
            _run(*host.command("ip", *address))
            # `ip netns exec` lays it over /etc/hosts: JAX asks for the address of the own name.
            names = _NAMES / host.namespace / "hosts"
            names.parent.mkdir(parents=True)
            names.write_text(f"127.0.0.1 localhost\n{host.address} {socket.gethostname()}\n")
            for device in ("lo", host.interface):
                _run(*host.command("ip", "link", "set", device, "up"))
            host.shape(megabits)
        yield hosts
    finally:
        for namespace in [*(host.namespace for host in hosts), switch]:
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "delete", namespace)
            shutil.rmtree(_NAMES / namespace, ignore_errors=True)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
