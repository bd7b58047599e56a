"""Weighted sums of loss, logs and gradients, from which parts of a batch are combined."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.tensor_values import multiply_gradients

MIN_WEIGHT = 1e-30
"""The divisor of sums over nothing, which are all zero."""


def make_zero_if_empty(count: Any) -> Callable[[Any], Any]:
    """Returns a function that replaces its tensor by zeros if `count` is 0.

    A mean over nothing may be NaN.

    Args:
        count: Scalar tensor. It is read once, for all tensors.
    """
    read_count = backend.current().compute.read_array(count)
    if read_count is not None and read_count > 0:
        return lambda tensor: tensor

    def counted(tensor: Any) -> Any:
        with backend.current().devices.on_device_of(tensor):
            return ops.where(count > 0, tensor, ops.zeros_like(tensor))

    return counted


@dataclass(frozen=True)
class WeightedSums:
    """The loss, logs and gradients of a part of a batch, each a mean times the part's weight.

    The sums of all parts, divided by the sum of the weights, are the means of the batch.

    Args:
        weight: Scalar tensor. The number of things that the loss is a mean over, such as tokens.
        loss: Scalar tensor, times the weight.
        logs: dict of scalar tensors by name, times the weight.
        gradients: list of tensors by variable, times the weight; `None` where the loss does not
            depend on a variable.
    """

    weight: Any
    loss: Any
    logs: dict[str, Any]
    gradients: list[Any]

    @classmethod
    def of(cls, loss: Any, weight: Any, logs: dict[str, Any]) -> "WeightedSums":
        """Returns a part's weighted sums from its means, without gradients."""
        where_weighty = make_zero_if_empty(weight)

        def weigh(mean: Any) -> Any:  # A mean over nothing may be NaN.
            return where_weighty(weight * ops.cast(mean, "float32"))

        return cls(weight, weigh(loss), {name: weigh(log) for name, log in logs.items()}, [])

    def scalars(self) -> list[Any]:
        """Returns the scalars in a list: weight, loss, logs."""
        return [self.weight, self.loss, *self.logs.values()]

    def tensors(self) -> list[Any]:
        """Returns all tensors in a list: weight, loss, logs, gradients."""
        return [*self.scalars(), *(gradient for gradient in self.gradients if gradient is not None)]

    def with_tensors(self, tensors: Sequence[Any]) -> "WeightedSums":
        """Returns sums of the same structure with the given tensors, in the order of `tensors`."""
        num_scalars = 2 + len(self.logs)
        remaining = iter(tensors[num_scalars:])
        gradients = [None if gradient is None else next(remaining) for gradient in self.gradients]
        return self.with_parts(tensors[:num_scalars], gradients)

    def with_parts(self, scalars: Sequence[Any], gradients: Sequence[Any]) -> "WeightedSums":
        """Returns sums of the same structure with the given scalars and gradients."""
        weight, loss, *logs = scalars
        return WeightedSums(weight, loss, dict(zip(self.logs, logs, strict=True)), list(gradients))

    def scale_gradients(self, factor: Any) -> "WeightedSums":
        """Returns the same sums with the gradients multiplied by `factor`, in new memory."""
        return replace(self, gradients=multiply_gradients(self.gradients, factor))

    def plus(self, other_sums: "WeightedSums", factor: Any) -> "WeightedSums":
        """Returns the total of these sums and other sums. It may overwrite the gradients of `self`.

        Args:
            other_sums: Sums of the same structure.
            factor: float32 scalar. A factor for the gradients of the others.
        """
        scalars = [a + b for a, b in zip(self.scalars(), other_sums.scalars(), strict=True)]
        gradients, other_gradients = (
            [gradient for gradient in sums.gradients if gradient is not None]
            for sums in (self, other_sums)
        )
        added = backend.current().step.add_multiples(gradients, other_gradients, factor)
        return self.with_tensors([*scalars, *added])


def divide(gradient: Any, divisor: Any) -> Any:
    """Divides a gradient on its own device."""
    with backend.current().devices.on_device_of(gradient):
        return ops.divide(gradient, divisor)
