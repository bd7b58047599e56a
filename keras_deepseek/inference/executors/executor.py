"""What the engine asks of whatever computes a model."""

from typing import Protocol, runtime_checkable

from keras_deepseek.artifacts.signature import Array, Signature


@runtime_checkable
class Executor(Protocol):
    """Something that computes outputs from inputs, one row of each for each row.

    Write your own to serve what is not a Keras model: `ServingEngine` takes any object with these
    two members. `run` is called with every batch size that the engine uses; with `replicas=1`, the
    default, from one thread at a time, and with more from as many threads at the same time.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.artifacts import Signature, TensorSpec
    >>> class Double:
    ...     signature = Signature(
    ...         inputs=(TensorSpec("x", (None, 2), "float32"),),
    ...         outputs=(TensorSpec("y", (None, 2), "float32"),),
    ...     )
    ...     def run(self, inputs):
    ...         return {"y": 2 * inputs["x"]}
    >>> isinstance(Double(), Executor)
    True
    >>> Double().run({"x": np.ones((1, 2), "float32")})
    {'y': array([[2., 2.]], dtype=float32)}
    """

    @property
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the inputs and the outputs."""

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Returns arrays by output name.

        Args:
            inputs: dict of arrays by input name, as the signature has them.
        """


@runtime_checkable
class ClosingExecutor(Protocol):
    """An executor that holds what is to be given back: a process, or memory of a GPU."""

    def close(self) -> object:
        """Gives it back. It is not run any more."""
