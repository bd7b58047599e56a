"""The arguments of `Trainer` that change its training step."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

import keras

from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.training.step.gradient_clip import GradientClip, check_gradient_clip
from keras_deepseek.training.step.named_layers import find_named_layers
from keras_deepseek.training.step.precision import (
    check_precision,
    is_slower_in_half,
    training_policy,
)
from keras_deepseek.training.step.rematerialization import Remat, check_remat
from keras_deepseek.training.step.step_guard import Action, StepGuard


class _Role(Enum):
    """The role of an option for models with an own `train_step`, and for other processes."""

    CHANGES_UPDATE = "a model's own train_step would ignore it"
    SETS_POLICY = "processes compare the policy that it leads to, and not the option"
    MAY_DIFFER = "processes may have different values"


@dataclass(frozen=True)
class StepOptions:
    """The options of a training step, checked. `Trainer` documents them for users."""

    fp16_enabled: bool = field(default=False, metadata={"role": _Role.SETS_POLICY})
    precision: str | keras.DTypePolicy | None = field(
        default=None, metadata={"role": _Role.SETS_POLICY}
    )
    float32_layers: Sequence[str] = ()
    micro_batches: int = field(default=1, metadata={"role": _Role.CHANGES_UPDATE})
    gradient_clip: GradientClip | None = field(
        default=None, metadata={"role": _Role.CHANGES_UPDATE}
    )
    guard: StepGuard | Action | None = field(default=None, metadata={"role": _Role.CHANGES_UPDATE})
    remat: Remat = field(default=False, metadata={"role": _Role.CHANGES_UPDATE})
    optimize_graph: bool = False
    layer_statistics: bool = field(default=False, metadata={"role": _Role.CHANGES_UPDATE})
    tune_malloc: bool = field(default=False, metadata={"role": _Role.MAY_DIFFER})

    def __post_init__(self) -> None:
        check_boolean("fp16_enabled", self.fp16_enabled)
        check_precision(self.precision, self.fp16_enabled, self.float32_layers)
        check_integer("micro_batches", self.micro_batches)
        check_gradient_clip(self.gradient_clip)
        check_remat(self.remat)
        check_boolean("optimize_graph", self.optimize_graph)
        check_boolean("layer_statistics", self.layer_statistics)
        check_boolean("tune_malloc", self.tune_malloc)
        self.make_guard()

    def choose_policy(
        self, model: keras.Model, device_kind: str
    ) -> tuple[keras.DTypePolicy | None, str]:
        """Returns the dtype policy of the step, or `None` for the model's own, and a notice text.

        The notice is a text for the user about `fp16_enabled`, or `""`.
        """
        policy = training_policy(self.precision, self.fp16_enabled, device_kind)
        if policy is None or not self.fp16_enabled:
            return policy, ""
        if not is_slower_in_half(model, device_kind):
            return policy, f"fp16_enabled: the training step computes in {policy.compute_dtype!r}."
        find_named_layers(model, "float32_layers", self.float32_layers)  # No step will check them.
        return None, (
            "fp16_enabled: the training stays in float32, because half precision makes "
            "convolutions and recurrent layers slower on JAX's CPU. precision='bfloat16' "
            "uses it anyway."
        )

    def make_guard(self) -> StepGuard | None:
        """Returns the option `guard` as a `StepGuard`, also if the user gave only an action."""
        if self.guard is None or isinstance(self.guard, StepGuard):
            return self.guard
        return StepGuard(self.guard)

    def changes_to_updates(self) -> dict[str, bool]:
        """Returns, for each option that a model's own `train_step` would ignore, if it is set."""
        # Without names, `remat=[]` asks for nothing, as `False` does.
        return {
            f"`{option.name}`": (value := getattr(self, option.name)) != option.default
            and value not in ([], ())
            for option in fields(self)
            if option.metadata.get("role") is _Role.CHANGES_UPDATE
        }

    def shared_options(self) -> dict[str, Any]:
        """Returns the options that must be equal in all processes of a training, by name."""
        return {
            option.name: getattr(self, option.name)
            for option in fields(self)
            if option.metadata.get("role") not in (_Role.SETS_POLICY, _Role.MAY_DIFFER)
        }
