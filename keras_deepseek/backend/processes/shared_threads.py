"""Which devices of JAX compute in the same threads: training on them waits for each step."""

from collections.abc import Sequence
from typing import Any


def share_threads(devices: Sequence[Any]) -> bool:
    """Returns whether a step must end before more is begun: several devices here are CPUs.

    XLA has as many threads as there are CPUs or devices, whichever is more. Once 32 programs are
    under way, further ones wait in these threads. Where one device adds what another one has not
    begun to compute, that one is then left without a thread, and both wait for ever.

    Args:
        devices: Those of `jax.local_devices()` that a program runs on.
    """
    return len(devices) > 1 and all(device.platform == "cpu" for device in devices)
