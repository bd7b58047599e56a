"""The check for JAX devices that share threads, so that training must wait for each step."""

from collections.abc import Sequence
from typing import Any


def share_threads(devices: Sequence[Any]) -> bool:
    """Returns True if several devices are CPUs, so that each step must end before the next.

    XLA has as many threads as there are CPUs or devices, whichever is more. Once 32 programs are
    under way, further ones wait inside these threads. If one device then adds what another has not
    started to compute, that one has no thread left, and both wait for ever.
    """
    return len(devices) > 1 and all(device.platform == "cpu" for device in devices)
