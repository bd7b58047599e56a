"""Memory that ran out on JAX."""

import gc

import jax


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that the memory of a device, or the machine's, ran out."""
    # A step that was dispatched already says INTERNAL, and the rest in words.
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError)
        and ("RESOURCE_EXHAUSTED" in text or "Out of memory" in text)
    )


def release_memory() -> None:
    """Gives back the memory that nothing uses and that the framework holds in reserve."""
    gc.collect()  # JAX gives back what no array holds.
