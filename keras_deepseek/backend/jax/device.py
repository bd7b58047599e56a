"""Which devices JAX sees."""

import jax


def count_devices(kind: str) -> int:
    """Returns how many devices of a kind (`"cpu"`, `"gpu"`, `"tpu"`) there are."""
    try:
        return len(jax.local_devices(backend=kind))
    except RuntimeError:  # JAX's word for a platform that it has no client for.
        return 0
