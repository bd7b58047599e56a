"""A learning rate schedule with a warm-up, a constant phase and a decay."""

import copy
import math
from typing import Any, Literal

import keras
from keras import ops

from keras_deepseek.backend.keras_private.optimizers import find_schedule, single_optimizers
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError, unknown_name_message

DecayShape = Literal["cosine", "linear", "polynomial", "sqrt"]

_SHAPES = ("cosine", "linear", "polynomial", "sqrt")


@keras.saving.register_keras_serializable("keras_deepseek")
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate schedule: warm-up, constant phase, decay.

    Use it as the `learning_rate` of any Keras optimizer. It is computed inside the training step,
    so that it applies to every step on every backend, also in a bare `model.fit`. A training that
    is resumed from a checkpoint continues its schedule. With `p` from 0 to 1 over the decay,

    ```
    rate = initial_lr + (peak_lr - initial_lr) * step / warmup_steps        during the warm-up
    rate = peak_lr                                                          until the decay
    rate = final_lr + (peak_lr - final_lr) * shape(p)                       during the decay
    ```

    | `decay` | `shape(p)` |
    |---|---|
    | `"cosine"` | `(1 + cos(pi * p)) / 2` |
    | `"linear"` | `1 - p` |
    | `"polynomial"` | `(1 - p) ** power` |
    | `"sqrt"` | `1 - sqrt(p)` |

    With `decay_steps`, the rate stays at its peak until the last `decay_steps` steps. This schedule
    is known as WSD: warm-up, stable, decay. After `total_steps` the rate is `final_lr`.

    Args:
        peak_lr: float. The highest rate.
        total_steps: integer. The number of updates of the training.
        warmup_steps: integer. The number of steps of the warm-up. Defaults to `0`.
        decay_steps: integer or `None`. The number of steps of the decay, at the end; `None` for all
            steps after the warm-up. Defaults to `None`.
        decay: `"cosine"`, `"linear"`, `"polynomial"` or `"sqrt"`. The shape of the decay. Defaults
            to `"cosine"`.
        initial_lr: float. The rate of the first step of the warm-up. Defaults to `0.0`.
        final_lr: float. The rate at the end. Defaults to `0.0`.
        power: float. The exponent of the `"polynomial"` decay. Defaults to `2.0`.
        gradient_accumulation_steps: integer. That of the optimizer, which gives a schedule the
            number of batches: a step of this schedule is an update, after so many batches. Defaults
            to `None`: a `Trainer` takes it from the optimizer; in a bare `model.fit` it is 1.

    Raises:
        InvalidInputError: A rate is negative, a number of steps is not valid, warm-up and decay are
            longer than the training, or the shape is unknown.

    Example:

    >>> import keras
    >>> from keras_deepseek.training import WarmupDecay
    >>> schedule = WarmupDecay(1.0, 100, warmup_steps=10, decay_steps=20, decay="linear")
    >>> [float(schedule(step)) for step in (0, 5, 10, 50, 90, 100, 200)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    >>> optimizer = keras.optimizers.AdamW(schedule)

    Reference:

    - [SGDR (Loshchilov and Hutter, 2016)](https://arxiv.org/abs/1608.03983), the cosine
    - [MiniCPM (Hu et al., 2024)](https://arxiv.org/abs/2404.06395), warm-up, stable, decay
    """

    def __init__(
        self,
        peak_lr: float,
        total_steps: int,
        *,
        warmup_steps: int = 0,
        decay_steps: int | None = None,
        decay: DecayShape = "cosine",
        initial_lr: float = 0.0,
        final_lr: float = 0.0,
        power: float = 2.0,
        gradient_accumulation_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.peak_lr = check_number("peak_lr", peak_lr, minimum=0)
        self.initial_lr = check_number("initial_lr", initial_lr, minimum=0)
        self.final_lr = check_number("final_lr", final_lr, minimum=0)
        self.power = check_number("power", power, minimum=0)
        self.total_steps = check_integer("total_steps", total_steps)
        if decay_steps is not None:
            decay_steps = check_integer("decay_steps", decay_steps)
        self.warmup_steps = check_integer("warmup_steps", warmup_steps, minimum=0)
        self.gradient_accumulation_steps = gradient_accumulation_steps
        check_integer("gradient_accumulation_steps", gradient_accumulation_steps, default=1)
        if self.warmup_steps + (decay_steps or 0) > self.total_steps:
            raise InvalidInputError(
                f"A warm-up of {warmup_steps} and a decay of {decay_steps or 0} steps are longer "
                f"than `total_steps`, {total_steps}."
            )
        if decay not in _SHAPES:
            raise InvalidInputError(unknown_name_message("decay", decay, _SHAPES))
        self.decay_steps = decay_steps
        self.decay = decay

    def __call__(self, step: Any) -> Any:
        if self.gradient_accumulation_steps:
            step = ops.floor_divide(step, self.gradient_accumulation_steps)
        return self.learning_rate(step)

    def learning_rate(self, step: Any) -> Any:
        """Returns the learning rate of the update that follows `step` updates.

        Args:
            step: integer or integer tensor. The number of updates before it.
        """
        step = ops.cast(step, "float32")
        rising = ops.minimum(step / max(self.warmup_steps, 1), 1.0) if self.warmup_steps else 1.0
        rate = self.initial_lr + (self.peak_lr - self.initial_lr) * rising
        num_steps = self.decay_steps or self.total_steps - self.warmup_steps
        passed = (step - (self.total_steps - num_steps)) / max(num_steps, 1)
        passed = ops.clip(passed, 0.0, 1.0)
        falling = self.final_lr + (self.peak_lr - self.final_lr) * self._shape(passed)
        return ops.where(passed > 0, falling, rate)

    def _shape(self, passed: Any) -> Any:
        """Returns the share of the fall that is left, after a share `passed` of the decay."""
        if self.decay == "cosine":
            return 0.5 * (1.0 + ops.cos(math.pi * passed))
        if self.decay == "sqrt":
            return 1.0 - ops.sqrt(passed)
        return (1.0 - passed) ** (self.power if self.decay == "polynomial" else 1.0)

    def get_config(self) -> dict[str, Any]:
        return {
            "peak_lr": self.peak_lr,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "decay_steps": self.decay_steps,
            "decay": self.decay,
            "initial_lr": self.initial_lr,
            "final_lr": self.final_lr,
            "power": self.power,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
        }


def count_updates(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes the `WarmupDecay` of an optimizer that accumulates gradients count its updates."""
    for single in single_optimizers(optimizer):
        schedule, steps = find_schedule(single), single.gradient_accumulation_steps
        if (
            steps
            and isinstance(schedule, WarmupDecay)
            and schedule.gradient_accumulation_steps is None
        ):
            schedule = copy.copy(schedule)  # Another optimizer may have the same object.
            schedule.gradient_accumulation_steps = steps
            single.learning_rate = schedule
