"""Findings on the loss, and on its validation.

Each is a pure function of arrays, and says nothing of a healthy run.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

_GROUPS, _MIN_GROUPS, _MIN_STEPS = 40, 10, 200
"""The groups of points by which a rule judges, and the fewest groups and steps that it needs."""
_MIN_VALIDATIONS, _MIN_RISES = 4, 3
_MIN_RISE, _MIN_JUMP = 0.05, 0.15
"""A smaller share of the first loss is no finding: a single hard row makes a batch jump."""
_MAX_SPIKE_GROUPS, _SPIKE_WINDOW = 4000, 20
"""Spikes are sought in at most so many groups of steps, each compared with the 20 before it."""
_SPIKE_STEPS, _SUSTAINED_SHARE = 3, 0.25
"""A spike lasts for this many steps with more than this share of its rise, ..."""
_OUTLIER_RATIO = 3
"""... or rises this many times as high as any other of the run."""
_NOISE_RATIO, _RANGE_RATIO = 3, 5
"""A spike rises above this many times the noise, and this many times the range of its window."""


@dataclass(frozen=True)
class Finding:
    """A sentence that says what the numbers of a run mean.

    Args:
        name: The kind, such as `spike`.
        level: `bad` (the run is lost or in vain), `warn`, or `info` (how things are).
        view: The view of the page that shows it: training, model or performance.
        sentence: What is seen, with its figures.
        advice: What to try.
        step: The step at which it begins.
    """

    name: str
    level: str
    view: str
    sentence: str
    advice: str
    step: int | None = None


@dataclass(frozen=True)
class Thresholds:
    """The limits of the findings.

    Args:
        leap: The multiple of its first value that an early loss must reach.
        spike: The multiple of the loss before it that a spike must reach.
        divergence: The multiple of its best value to which a loss must have grown again.
        plateau: The share by which the loss must fall in the second half of the steps.
        overfitting: The multiple of its best value that the validation loss must reach.
        starved_expert: The share of an equal load below which an expert starves.
        data_wait: The share of a step that may be spent waiting for data.
        idle: The share of a step in which the device may do nothing.
    """

    leap: float = 5.0
    spike: float = 2.0
    divergence: float = 1.5
    plateau: float = 0.01
    overfitting: float = 1.1
    starved_expert: float = 0.1
    data_wait: float = 0.2
    idle: float = 0.3


Points = tuple[np.ndarray, np.ndarray]
"""Steps and values."""


def find_not_finite(loss: Points, validation: Points, norm: Points) -> Iterator[Finding]:
    """Finds a loss or a gradient that is NaN or infinite."""
    named = (("loss", loss), ("validation loss", validation), ("gradient norm", norm))
    for name, (steps, values) in named:
        bad = np.flatnonzero(~np.isfinite(values))
        if not len(bad):
            continue
        first = int(steps[bad[0]])
        if bad[0] == 0:
            advice = "It is so from the start: look for NaN in the inputs and labels."
        else:
            advice = (
                "Lower the learning rate, clip gradients, or guard steps with a `StepGuard`. If it "
                "comes back at the same step, look for NaN in that batch."
            )
        share = f": {len(bad):,} of {len(values):,} values" if len(bad) > 1 else ""
        yield Finding(
            *("not_finite", "bad", "training"),
            f"The {name} is NaN or infinite from step {first:,} on{share}.",
            advice,
            first,
        )
        return


def find_leap(loss: Points, limit: float) -> Iterator[Finding]:
    """Finds a loss that leaps far above its first value in the first fifth of the steps."""
    steps, values = loss
    if len(values) < 5 * _MIN_GROUPS:
        return
    top = int(np.nanargmax(values[: len(values) // 5]))
    # The losses of small batches have long tails, and the first of them may be small by chance.
    if values[0] > 0 and values[top] > limit * np.exp(6 * _noise(values)) * values[0]:
        yield Finding(
            *("leap", "bad", "training"),
            f"The loss leapt from {values[0]:.3g} to {values[top]:.3g} at step {steps[top]:,}: the "
            "learning rate is too high.",
            "Lower it tenfold, or warm it up; `Trainer.find_learning_rate` proposes one.",
            int(steps[top]),
        )


def find_divergence(loss: Points, limit: float) -> Iterator[Finding]:
    """Finds a loss that has grown again, and is still high at the end."""
    steps, values = _in_groups(loss, _GROUPS)
    if len(values) < _MIN_GROUPS:
        return
    best = int(np.argmin(values))
    end = float(np.median(values[-3:]))
    spread = float(np.median(np.abs(np.diff(values))))
    # The rise must be far above the usual change from group to group.
    min_rise = max(6 * spread, _MIN_RISE * values[0])
    if values[best] > 0 and end > limit * values[best] and end - values[best] > min_rise:
        yield Finding(
            *("divergence", "bad", "training"),
            f"The loss has grown since step {steps[best]:,}, from {values[best]:.3g} to {end:.3g}.",
            "Lower the learning rate, or warm it up; `Trainer.find_learning_rate` proposes one. "
            "Clip gradients.",
            int(steps[best]),
        )


def find_spike(loss: Points, limit: float) -> Iterator[Finding]:
    """Finds the highest jump of the loss, in a run that has not diverged.

    A single hard row can make a small batch jump. So a jump counts only if it lasts for three
    steps, or is far higher than all others of the run.
    """
    steps, values = loss
    if len(values) < _GROUPS:
        return
    # The peak of each group of steps is compared with those of the groups before it.
    group_size = max(1, len(values) // _MAX_SPIKE_GROUPS)
    starts = np.arange(0, len(values), group_size)
    peaks = np.fmax.reduceat(values, starts)
    windows = sliding_window_view(peaks, _SPIKE_WINDOW)[:-1]
    baseline = np.median(windows, axis=1)
    rise = peaks[_SPIKE_WINDOW:] - baseline
    # A spike rises by a multiple of the loss before it, more if the loss is noisy; ...
    min_ratio = limit * np.exp(_NOISE_RATIO * _noise(values))
    # ... by a multiple of the range of its window; ...
    window_range = windows.max(axis=1) - baseline
    min_rise = np.maximum((min_ratio - 1) * baseline, _RANGE_RATIO * window_range)
    # ... and by a share of the first losses.
    min_rise = np.maximum(min_rise, _MIN_JUMP * np.median(values[:_SPIKE_WINDOW]))
    is_spike = (baseline > 0) & (rise > min_rise)
    is_spike &= _lasts(values, starts, baseline, rise) | _stands_out(rise)
    if is_spike.any():
        highest = int(np.argmax(np.where(is_spike, rise, 0.0)))
        start = starts[_SPIKE_WINDOW + highest]
        index = int(start + np.nanargmax(values[start : start + group_size]))
        yield Finding(
            *("spike", "warn", "training"),
            f"The loss jumped at step {steps[index]:,}, from {baseline[highest]:.3g} to "
            f"{values[index]:.3g}.",
            "Clip gradients, or look at the data of that step. If it comes back, lower the "
            "learning rate.",
            int(steps[index]),
        )


def _lasts(
    values: np.ndarray, starts: np.ndarray, baseline: np.ndarray, rise: np.ndarray
) -> np.ndarray:
    """Returns True for each group in which `_SPIKE_STEPS` steps in a row are high.

    A step is high if it rises by more than `_SUSTAINED_SHARE` of the rise of its group.
    """
    # The least of each step and the ones after it is high only if all of them are.
    padded = np.pad(values, (0, _SPIKE_STEPS - 1), "edge")
    lowest_ahead = sliding_window_view(padded, _SPIKE_STEPS).min(axis=1)
    sustained: np.ndarray = np.fmax.reduceat(lowest_ahead, starts)[_SPIKE_WINDOW:] - baseline
    return sustained > _SUSTAINED_SHARE * rise


def _stands_out(rise: np.ndarray) -> np.ndarray:
    """Returns True for the highest rise alone, if all rises outside of its window are far lower."""
    highest = int(np.argmax(rise))
    window = slice(max(0, highest - _SPIKE_WINDOW), highest + _SPIKE_WINDOW)
    is_outlier = np.zeros(len(rise), bool)
    is_outlier[highest] = rise[highest] > _OUTLIER_RATIO * np.delete(rise, window).max(initial=0.0)
    return is_outlier


def find_plateau(loss: Points, limit: float) -> Iterator[Finding]:
    """Finds a loss that has hardly fallen, and does not fall any more.

    A loss that has fallen by more than a fifth is no finding: with noisy data it can't reach 0.
    """
    steps, values = _in_groups(loss, _GROUPS)
    if len(values) < _GROUPS or steps[-1] < _MIN_STEPS:
        return
    # There are 40 groups. The 8 in the middle are compared with the last 8.
    start = float(np.mean(values[:2]))
    middle, end = float(np.mean(values[16:24])), float(np.mean(values[-8:]))
    noise = float(np.std(values[20:])) / np.sqrt(8)  # Of a mean of 8 groups.
    if end > 0.8 * start and abs(middle - end) < max(limit * start, 2 * noise):
        yield Finding(
            *("plateau", "warn", "training"),
            f"The loss has not fallen since step {steps[20]:,}: it stays at {end:.3g}, and began "
            f"at {start:.3g}.",
            "Try another learning rate (`Trainer.find_learning_rate`), check that the labels "
            "belong to the inputs, and that no layer is frozen by mistake.",
            int(steps[20]),
        )


def find_overfitting(loss: Points, validation: Points, limit: float) -> Iterator[Finding]:
    """Finds a validation loss that rises, or stays far above, while the training loss falls."""
    steps, values = validation
    is_finite = np.isfinite(values)
    steps, values = steps[is_finite], values[is_finite]
    if len(values) < _MIN_VALIDATIONS or not len(loss[0]):
        return
    # The median of three validations, of which the second is `best + 1`.
    level = np.median(sliding_window_view(values, 3), axis=1)
    best, start = int(np.argmin(level)), loss[1][0]
    rise = level[-1] - level[best]
    jitter = float(np.median(np.abs(np.diff(values[best:]))))
    train_at_best, end = np.interp(steps[[best + 1, -1]], *loss)
    has_risen = rise > max((limit - 1) * level[best], 2 * jitter, _MIN_RISE / 2 * start)
    is_apart = end < 0.5 * level[-1] and level[-1] - end > 0.1 * start
    if len(level) - best >= _MIN_RISES and end < train_at_best and (has_risen or is_apart):
        yield Finding(
            *("overfitting", "warn", "training"),
            f"The model overfits since step {steps[best + 1]:,}: the validation loss rose from "
            f"{level[best]:.3g} to {level[-1]:.3g} while the training loss fell to {end:.3g}.",
            "Keep the weights of that step (`EarlyStopping`), add data or augmentation, or "
            "regularize: dropout, weight decay, a smaller model.",
            int(steps[best + 1]),
        )


def _noise(values: np.ndarray) -> float:
    """Returns the median change of the logarithm of the loss from step to step."""
    differences = np.abs(np.diff(np.log(values[values > 0])))
    return float(np.median(differences)) if len(differences) else 0.0


def _in_groups(points: Points, count: int) -> Points:
    """Returns the median of each of at most `count` groups of points, with its first step."""
    steps, values = points
    is_finite = np.isfinite(values)
    steps, values = steps[is_finite], values[is_finite]
    if len(values) <= count:
        return steps, values
    groups = np.array_split(np.arange(len(values)), count)
    return (
        np.array([steps[group[0]] for group in groups]),
        np.array([np.median(values[group]) for group in groups]),
    )
