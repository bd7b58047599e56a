"""What a batch is trained by, summed over its parts: micro-batches, and the rows of replicas."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.gradient_scale import multiply_gradients

MIN_WEIGHT = 1e-30
"""What sums are divided by where they are over nothing, and are all zero."""


def make_zero_if_empty(count: Any) -> Callable[[Any], Any]:
    """Returns a function of a tensor to itself, or to zeros where it is of nothing that counts.

    There it may be NaN.

    Args:
        count: Scalar tensor. How much counts; it is read once for all tensors.
    """
    known = backend.current().compute.read_array(count)
    if known is not None and known > 0:
        return lambda tensor: tensor

    def counted(tensor: Any) -> Any:
        with backend.current().devices.on_device_of(tensor):
            return ops.where(count > 0, tensor, ops.zeros_like(tensor))

    return counted


@dataclass(frozen=True)
class WeightedSums:
    """Means of a part of a batch, each times what it is a mean over; they add up to the batch's.

    Args:
        weight: Scalar tensor. What the loss is a mean over, such as the number of tokens.
        loss: Scalar tensor, times the weight.
        logs: dict of scalar tensors by name, likewise.
        gradients: list of tensors by variable, likewise; `None` where the loss does not depend on
            a variable.
    """

    weight: Any
    loss: Any
    logs: dict[str, Any]
    gradients: list[Any]

    @classmethod
    def of(cls, loss: Any, weight: Any, logs: dict[str, Any]) -> "WeightedSums":
        """Returns the sums of a part, whose means are given, without gradients."""
        where_weighty = make_zero_if_empty(weight)

        def weigh(mean: Any) -> Any:  # A mean over nothing may be NaN, and counts for nothing.
            return where_weighty(weight * ops.cast(mean, "float32"))

        return cls(weight, weigh(loss), {name: weigh(log) for name, log in logs.items()}, [])

    def scalars(self) -> list[Any]:
        """Returns the weight, the loss and the logs."""
        return [self.weight, self.loss, *self.logs.values()]

    def tensors(self) -> list[Any]:
        """Returns all that is summed, one after the other."""
        return [*self.scalars(), *(each for each in self.gradients if each is not None)]

    def with_tensors(self, tensors: Sequence[Any]) -> "WeightedSums":
        """Returns sums of the same form.

        Args:
            tensors: What `tensors` returned of others.
        """
        num_scalars = 2 + len(self.logs)
        left = iter(tensors[num_scalars:])
        gradients = [None if gradient is None else next(left) for gradient in self.gradients]
        return self.with_parts(tensors[:num_scalars], gradients)

    def with_parts(self, scalars: Sequence[Any], gradients: Sequence[Any]) -> "WeightedSums":
        """Returns sums of the same form.

        Args:
            scalars: What `scalars` returned of others.
            gradients: Those of all variables.
        """
        weight, loss, *logs = scalars
        return WeightedSums(weight, loss, dict(zip(self.logs, logs, strict=True)), list(gradients))

    def scale_gradients(self, factor: Any) -> "WeightedSums":
        """Returns the same sums, with multiples of the gradients, which share memory with none.

        Args:
            factor: float32 scalar.
        """
        return replace(self, gradients=multiply_gradients(self.gradients, factor))

    def plus(self, others: "WeightedSums", factor: Any) -> "WeightedSums":
        """Returns the sums with others added, and may write into the gradients of these.

        Args:
            others: Sums of the same form.
            factor: float32 scalar, by which the others' gradients are multiplied.
        """
        scalars = [a + b for a, b in zip(self.scalars(), others.scalars(), strict=True)]
        own, found = (
            [each for each in sums.gradients if each is not None] for sums in (self, others)
        )
        added = backend.current().step.add_multiples(own, found, factor)
        return self.with_tensors([*scalars, *added])

    def means(self, *, is_sum: bool) -> tuple[Any, dict[str, Any], list[Any]]:
        """Returns loss, logs and gradients of the whole.

        Args:
            is_sum: boolean. Whether they are sums by themselves, of parts whose weight is 1.
        """
        divisor = 1.0 if is_sum else ops.maximum(self.weight, MIN_WEIGHT)
        return (
            self.loss / divisor,
            {name: log / divisor for name, log in self.logs.items()},
            [None if each is None else _divide(each, divisor) for each in self.gradients],
        )


def _divide(gradient: Any, divisor: Any) -> Any:
    with backend.current().devices.on_device_of(gradient):
        return ops.divide(gradient, divisor)
