"""Names of the free axes of inputs, for exporters that trace a model.

Two inputs may have independent lengths, as an encoder and a decoder have, or equal ones, as tokens
and their mask. The model does not say which. Tracing it does.
"""

from collections.abc import Callable, Mapping

from keras_deepseek.artifacts.signature import Signature

Shapes = Mapping[str, tuple[int | str, ...]]
"""The shape of each input by name. An axis is a size, or the name of a free axis."""

BATCH = "batch"


def with_named_axes(signature: Signature, trace: Callable[[Shapes], None]) -> None:
    """Traces a model with independent free sizes, or with shared ones if that fails."""
    try:
        trace(name_axes(signature, are_shared=False))
    except Exception:  # Exporters raise any error.
        if count_free_lengths(signature) <= 1:
            raise
        trace(name_axes(signature, are_shared=True))


def count_free_lengths(signature: Signature) -> int:
    """Returns the number of axes of any size in a model's inputs, without the batch axes."""
    return sum(size is None for spec in signature.inputs for size in spec.shape[1:])


def name_axes(signature: Signature, *, are_shared: bool) -> Shapes:
    """Returns the shapes of a model's inputs, with names in place of the sizes of free axes.

    The first is the batch axis.

    `are_shared` gives free axes at the same position of two inputs one name.
    """

    def name(owner: str, axis: int) -> str:
        if axis == 0:
            return BATCH
        return f"axis_{axis}" if are_shared else f"{owner}_axis_{axis}"

    return {
        spec.name: tuple(
            name(spec.name, axis) if size is None else size for axis, size in enumerate(spec.shape)
        )
        for spec in signature.inputs
    }
