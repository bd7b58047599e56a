"""Faster forms of Keras's layers, each of which runs once it has given the same as Keras's own.

At the first call of a layer with a shape, outputs and gradients of both are compared, and now and
then again. Elsewhere Keras's own form runs.
"""

import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from keras_deepseek.backend.comparison_schedule import ComparisonSchedule
from keras_deepseek.backend.torch.recording import is_recording

_TOLERANCE = 100
"""The largest difference to Keras's form, in units of rounding of the largest number."""

_LEAST_SCALE = 0.01
"""The least scale of a tensor for its rounding, as a part of the largest number of all tensors."""

_MOST_SHAPES = 256
"""The most shapes of a layer that are remembered. The first one is dropped."""

Values = Sequence[Any]
Form = Callable[[Values], Sequence[Any]]
"""A function of the tensors of a layer that returns outputs and states."""

_Schedules = dict[Any, ComparisonSchedule]
_proved: weakref.WeakKeyDictionary[Any, _Schedules] = weakref.WeakKeyDictionary()
_refused: weakref.WeakSet[Any] = weakref.WeakSet()


def run_proved(
    owner: Any,
    settings: Any,
    values: Values,
    by_keras: Form,
    faster: Form,
    find_tolerance: Callable[[], float] = lambda: _TOLERANCE,
) -> Sequence[Any] | None:
    """Returns the results of the faster of two forms, or `None` if Keras's form must run.

    Args:
        owner: The layer, or the function of Keras.
        settings: What the forms depend on besides the shapes.
        values: The tensors that both forms take.
        by_keras: Keras's form.
        faster: The form in its place.
        find_tolerance: Function that returns the largest difference, in units of rounding of the
            largest number. Defaults to 100.
    """
    if owner in _refused:
        return None
    comparison = _Comparison(values)
    key = (settings, comparison.key())
    schedules = _proved.setdefault(owner, {})
    schedule = schedules.get(key)
    if schedule is None or (schedule.is_due() and not is_recording()):
        start = time.perf_counter()
        difference = comparison.measure(by_keras, faster)
        if schedule is not None:
            schedule.add_comparison(time.perf_counter() - start)
        if difference is None:
            return None
        if not difference <= max(_TOLERANCE, find_tolerance()):
            _refuse(owner, difference)
            return None
        schedule = schedules.setdefault(key, ComparisonSchedule())
        if len(schedules) > _MOST_SHAPES:
            del schedules[next(iter(schedules))]
    start = time.perf_counter()
    results = faster(values)
    schedule.add_run(time.perf_counter() - start)
    return results


def is_plain(tensor: Any, dtype: torch.dtype = torch.float32) -> bool:
    """Returns True for a tensor of PyTorch on a CPU that no transformation wraps."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.dtype == dtype
        and tensor.numel() > 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # noqa: SLF001
    )


class _Comparison:
    """Compares two forms of a layer on copies of the same tensors."""

    def __init__(self, values: Values) -> None:
        self._values = values
        trains = torch.is_grad_enabled()
        self._needs_gradients = [trains and value.requires_grad for value in values]

    def key(self) -> Any:
        """Returns a key of what is compared: the shapes, and which gradients there are."""
        layouts = tuple((value.shape, value.dtype) for value in self._values)
        return (*self._needs_gradients, *layouts)

    def measure(self, by_keras: Form, faster: Form) -> float | None:
        """Returns the largest difference in units of rounding of the largest number.

        `None`: there are infinite numbers, or a recording that would record both forms.
        """
        if is_recording():
            return None
        results = [self._run(form) for form in (by_keras, faster)]
        if not all(tensor.isfinite().all() for tensor in results[0]):
            return None
        scales = torch.stack([tensor.abs().max() for tensor in results[0]])
        # A sum whose terms cancel out is no larger than their rounding.
        scales = torch.maximum(scales, scales.max() * _LEAST_SCALE).clamp(min=1e-30)
        differences = [(a - b).abs().max() for a, b in zip(*results, strict=True)]
        ratios = torch.stack(differences) / scales
        return float(ratios.max() / torch.finfo(torch.float32).eps)

    def _run(self, form: Form) -> list[torch.Tensor]:
        """Returns outputs, states and gradients of a form."""
        values = [
            value.detach().clone().requires_grad_(needs_gradient)
            for value, needs_gradient in zip(self._values, self._needs_gradients, strict=True)
        ]
        # Hooks of the caller, such as those of a checkpoint, must not see these tensors.
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            results = list(form(values))
            outputs = [result for result in results if result.requires_grad]
            sources = [value for value in values if value.requires_grad]
            gradients: Sequence[torch.Tensor] = []
            if outputs:
                upstream = [
                    torch.linspace(0.5, 1.5, output.numel()).to(output).view(output.shape)
                    for output in outputs
                ]
                gradients = torch.autograd.grad(
                    outputs, sources, upstream, allow_unused=True, materialize_grads=True
                )
        return [*(result.detach() for result in results), *gradients]


def _refuse(owner: Any, difference: float) -> None:
    _refused.add(owner)
    name = getattr(owner, "name", None) or owner.__name__
    warnings.warn(
        f"{name!r} runs Keras's own operations, which are slower: the operation that replaces them "
        f"differs by {difference:.0f} times the rounding error.",
        stacklevel=2,
    )
