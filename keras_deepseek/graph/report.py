"""The report of an optimization."""

import dataclasses
from typing import Any

from keras_deepseek.graph.ir import Leaf, Rewrite


@dataclasses.dataclass(frozen=True)
class OptimizationReport:
    """The findings of `graph.optimize`: what it rewrote, kept and measured.

    Args:
        mode: `"inference"` or `"train"`.
        passes: The passes that were kept. `None` if the original is run.
        operations: The number of operations and whole layers, before and after, without those of
            gradients.
        multiply_adds: The multiply-adds of products and convolutions outside of whole layers,
            before and after, at the sizes of the example inputs. With `mode="train"` they include
            the gradients.
        rewrites: The changes that each kept pass made.
        leaves: The layers that were kept whole, by path, and the reasons.
        free_axes: The axes of the inputs whose size may change without a new program, as in
            `"axis 0 of input 0"`. Those that `and` joins must have the same size. Defaults to `()`.
        largest_difference: The largest absolute difference between the outputs. Defaults to `None`:
            nothing was compared.
        speed_up: The original's time over the optimized model's. Defaults to `None`: not measured.
        pass_speed_ups: The time without a pass over the time with it, for each pass measured. The
            entry `"flat program"` is the original's time over that of a program without passes.
            Defaults to an empty dict.
        failure: The pass, the layer and the difference of a verification that failed. Defaults to
            `None`: none failed.

    Example:

    >>> report = OptimizationReport("train", None, (9, 9), (640, 640), {}, {})
    >>> print(report)
    train: 9 operations, now 9
    640 multiply-adds with gradients, now 640
    The original is used: nothing that pays was found.
    """

    mode: str
    passes: tuple[str, ...] | None
    operations: tuple[int, int]
    multiply_adds: tuple[int, int]
    rewrites: dict[str, list[Rewrite]]
    leaves: dict[str, Leaf]
    free_axes: tuple[str, ...] = ()
    largest_difference: float | None = None
    speed_up: float | None = None
    pass_speed_ups: dict[str, float] = dataclasses.field(default_factory=dict)
    failure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as dicts, lists, texts and numbers, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        old_operations, new_operations = self.operations
        old_multiply_adds, new_multiply_adds = self.multiply_adds
        gradients = " with gradients" if self.mode == "train" else ""
        lines = [
            f"{self.mode}: {old_operations:,} operations, now {new_operations:,}",
            f"{old_multiply_adds:,} multiply-adds{gradients}, now {new_multiply_adds:,}",
        ]
        if self.free_axes:
            lines.append(f"of any size: {', '.join(self.free_axes)}")
        if self.failure:
            lines.append(f"The original is used: {self.failure}")
        elif self.passes is None:
            lines.append("The original is used: nothing that pays was found.")
        if self.speed_up is not None:
            lines.append(f"{self.speed_up:.2f} times as fast as the original")
        if self.speed_up is not None and (speed := self.pass_speed_ups.get("flat program")):
            lines.append(f"flat program, without passes ({speed:.2f} times)")
        for name, rewrites in self.rewrites.items():
            speed = self.pass_speed_ups.get(name)
            lines.append(name + (f" ({speed:.2f} times)" if speed else ""))
            layers_of_text: dict[str, list[str]] = {}
            for rewrite in rewrites:
                layers = ", ".join(filter(None, rewrite.layers))
                layers_of_text.setdefault(rewrite.text, []).append(layers)
            for text, layer_names in layers_of_text.items():
                many = f"  {text} x {len(layer_names)}, first in {layer_names[0]}"
                lines.append(many if layer_names[1:] else f"  {layer_names[0]}: {text}")
        if self.leaves:
            lines.append("kept whole")
        for path, leaf in self.leaves.items():
            lines.append(f"  {path} ({leaf.layer_class}): {leaf.reason}")
        return "\n".join(lines)
