"""Findings: sentences that say what the numbers of a run mean, and what to try.

Each is a pure function of arrays, and says nothing of a healthy run.
"""

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deepseek.studio.run_reader import RunReader

_LEVELS = ("bad", "warn", "info")

# The least number of points by which each is judged.
_GROUPS, _FEWEST_GROUPS, _FEWEST_STEPS = 40, 10, 200
_FEWEST_VALIDATIONS, _FEWEST_RISES = 4, 3
_FEWEST_VECTORS, _FEWEST_ROWS = 4, 2
_FEWEST_TIMES = 5
_LEAST_RISE, _LEAST_JUMP = 0.05, 0.15
"""A smaller share of the first loss is not worth a word: a single hard row makes a batch jump."""
_MAX_SPIKE_GROUPS, _SPIKE_WINDOW = 4000, 20
"""The most groups of points in which spikes are sought, and the groups compared with one."""
_SPIKE_STEPS, _SUSTAINED_SHARE = 3, 0.25
"""A spike lasts for this many steps with more than this share of its rise, ..."""
_OUTLIER_RATIO = 3
"""... or rises this many times as high as any other of the run."""
_NOISE_RATIO, _RANGE_RATIO = 3, 5
"""A spike rises above this many times the noise, and this many times the range of its window."""
_LEAST_WAIT = 1e-3
"""A wait of less than this many seconds a step is not worth a word."""
_LEAST_SHARE = 0.05
"""A layer that takes a smaller share of the step is not worth a word."""
_MOST_NAMES = 3
_LONGEST = 300  # Characters.


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
        leap: How many times its first value an early loss must reach.
        spike: How many times the level before it a loss must reach.
        divergence: How many times its best level a loss must have come back to.
        plateau: The share by which the loss must fall in the second half of the steps.
        overfitting: How many times its best value the validation loss must reach.
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


def find(reader: RunReader, thresholds: Thresholds) -> list[Finding]:
    """Returns the findings of a run, the worst first."""
    with reader.lock:
        findings = list(_find(reader, thresholds))
    return sorted(findings, key=lambda finding: _LEVELS.index(finding.level))


def _find(reader: RunReader, limits: Thresholds) -> Iterator[Finding]:
    def points(name: str) -> Points:
        series = reader.series(name)
        return series.steps, series.values

    loss_name = "step_loss" if "step_loss" in reader.ends else "loss"
    loss, validation = points(loss_name), points("val_loss")
    yield from find_end(reader.state(), reader.properties, loss[0], reader.last_time())
    not_finite = list(find_not_finite(loss, validation, points("gradient_norm")))
    yield from not_finite
    diverged: list[Finding] = []
    # A mean since the epoch began drops at each epoch: a rise after it says nothing.
    if not not_finite and loss_name == "step_loss":
        diverged = list(find_leap(loss, limits.leap)) or list(
            find_divergence(loss, limits.divergence)
        )
        yield from diverged or find_spike(loss, limits.spike)
    if "layer_gradient_norms" in reader.vector_names:
        norms, ratios = map(reader.vectors, ("layer_gradient_norms", "layer_update_ratios"))
        yield from find_dead_layers(norms.labels, norms.steps, norms.matrix(), ratios.matrix())
    if not diverged:
        yield from find_plateau(loss, limits.plateau)
    means = points("loss") if "loss" in reader.ends else loss
    yield from find_overfitting(means, validation, limits.overfitting)
    if "expert_load" in reader.vector_names:
        vectors = reader.vectors("expert_load")
        yield from find_starved_experts(vectors.labels, vectors.matrix(), limits.starved_expert)
    profile = reader.document("profile")
    if profile and "reason" in profile:  # It could not be taken.
        profile = None
    yield from find_bottleneck(
        profile, points("data_wait_seconds")[1], points("step_seconds")[1], limits
    )
    if profile:
        yield from find_expensive_layer(profile)


def find_end(
    state: str, properties: Mapping[str, Any], steps: np.ndarray, last_time: float | None
) -> Iterator[Finding]:
    """Finds a run that died: by an error, or without a word."""
    last = int(steps[-1]) if len(steps) else None
    after = "before its first step" if last is None else f"after step {last:,}"
    if state == "failed":
        reason, _, advice = str(properties.get("failure") or "unknown reason").partition(". ")
        # A framework's message can have a thousand lines, which would hide the charts.
        reason, advice = (
            textwrap.shorten(text, _LONGEST, placeholder=" …") for text in (reason, advice)
        )
        yield Finding(
            *("failed", "bad", "training", f"The run failed {after}: {reason.rstrip('.')}."),
            advice or "Mend the cause, then resume from the last checkpoint.",
            last,
        )
    elif state == "lost":
        at = "" if last_time is None else time.strftime(", at %H:%M", time.localtime(last_time))
        yield Finding(
            *("died", "bad", "training", f"The run died without a word {after}{at}."),
            "The process was killed. Look for the out-of-memory killer in the kernel's log "
            "(`dmesg`) and for the limits of the job, then resume from the last checkpoint.",
            last,
        )


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
    if len(values) < 5 * _FEWEST_GROUPS:
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
    """Finds a loss that has grown again and stays there."""
    steps, values = _in_groups(loss, _GROUPS)
    if len(values) < _FEWEST_GROUPS:
        return
    best = int(np.argmin(values))
    end = float(np.median(values[-3:]))
    spread = float(np.median(np.abs(np.diff(values))))
    grown = max(6 * spread, _LEAST_RISE * values[0])
    if values[best] > 0 and end > limit * values[best] and end - values[best] > grown:
        yield Finding(
            *("divergence", "bad", "training"),
            f"The loss has grown since step {steps[best]:,}, from {values[best]:.3g} to {end:.3g}.",
            "Lower the learning rate, or warm it up; `Trainer.find_learning_rate` proposes one. "
            "Clip gradients.",
            int(steps[best]),
        )


def find_spike(loss: Points, limit: float) -> Iterator[Finding]:
    """Finds a loss that jumped and came back: the highest such jump.

    It lasts for three steps, or stands out of the whole run: a small batch may hold a hard row.
    """
    steps, values = loss
    if len(values) < _GROUPS:
        return
    group_size = max(1, len(values) // _MAX_SPIKE_GROUPS)
    starts = np.arange(0, len(values), group_size)
    peaks = np.fmax.reduceat(values, starts)
    padded = np.pad(values, (0, _SPIKE_STEPS - 1), "edge")
    lowest_ahead = np.lib.stride_tricks.sliding_window_view(padded, _SPIKE_STEPS).min(axis=1)
    window = _SPIKE_WINDOW
    earlier_peaks = np.lib.stride_tricks.sliding_window_view(peaks, window)[:-1]
    median = np.median(earlier_peaks, axis=1)
    rise = peaks[window:] - median
    sustained_rise = np.fmax.reduceat(lowest_ahead, starts)[window:] - median
    is_credible = sustained_rise > _SUSTAINED_SHARE * rise
    highest = int(np.argmax(rise))
    distant_rises = np.delete(rise, slice(max(0, highest - window), highest + window))
    is_credible[highest] |= rise[highest] > _OUTLIER_RATIO * distant_rises.max(initial=0.0)
    min_rise = np.maximum(
        (limit * np.exp(_NOISE_RATIO * _noise(values)) - 1) * median,
        _RANGE_RATIO * (earlier_peaks.max(axis=1) - median),
    )
    min_rise = np.maximum(min_rise, _LEAST_JUMP * np.median(values[:window]))
    is_spike = is_credible & (median > 0) & (rise > min_rise)
    if is_spike.any():
        highest = int(np.argmax(np.where(is_spike, rise, 0.0)))
        start = starts[window + highest]
        index = int(start + np.nanargmax(values[start : start + group_size]))
        yield Finding(
            *("spike", "warn", "training"),
            f"The loss jumped at step {steps[index]:,}, from {median[highest]:.3g} to "
            f"{values[index]:.3g}.",
            "Clip gradients, or look at the data of that step. If it comes back, lower the "
            "learning rate.",
            int(steps[index]),
        )


def find_plateau(loss: Points, limit: float) -> Iterator[Finding]:
    """Finds a loss that stopped falling after it has hardly fallen.

    A loss that has fallen by more than a fifth may rest: data with noise have a floor.
    """
    steps, values = _in_groups(loss, _GROUPS)
    if len(values) < _GROUPS or steps[-1] < _FEWEST_STEPS:
        return
    start = float(np.mean(values[:2]))
    middle, end = float(np.mean(values[16:24])), float(np.mean(values[-8:]))
    noise = float(np.std(values[20:])) / np.sqrt(8)
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
    if len(values) < _FEWEST_VALIDATIONS or not len(loss[0]):
        return
    level = np.median(np.lib.stride_tricks.sliding_window_view(values, 3), axis=1)
    best, start = int(np.argmin(level)), loss[1][0]
    rise = level[-1] - level[best]
    jitter = float(np.median(np.abs(np.diff(values[best:]))))
    train, end = np.interp(steps[[best + 1, -1]], *loss)
    has_risen = rise > max((limit - 1) * level[best], 2 * jitter, _LEAST_RISE / 2 * start)
    is_apart = end < 0.5 * level[-1] and level[-1] - end > 0.1 * start
    if len(level) - best >= _FEWEST_RISES and end < train and (has_risen or is_apart):
        yield Finding(
            *("overfitting", "warn", "training"),
            f"The model overfits since step {steps[best + 1]:,}: the validation loss rose from "
            f"{level[best]:.3g} to {level[-1]:.3g} while the training loss fell to {end:.3g}.",
            "Keep the weights of that step (`EarlyStopping`), add data or augmentation, or "
            "regularize: dropout, weight decay, a smaller model.",
            int(steps[best + 1]),
        )


def find_dead_layers(
    labels: Sequence[str], steps: Sequence[int], gradients: np.ndarray, updates: np.ndarray
) -> Iterator[Finding]:
    """Finds layers that don't learn, and layers whose gradient explodes.

    Args:
        labels: The layer of each row.
        steps: The step of each column.
        gradients: The norms of the gradients.
        updates: The ratios of updates to weights.
    """
    count = gradients.shape[1]
    if count < _FEWEST_VECTORS or len(labels) < _FEWEST_ROWS:
        return
    lately = slice(-max(3, count // 5), None)
    last, change = (np.median(matrix[:, lately], axis=1) for matrix in (gradients, updates))
    # Weight decay changes weights that get no gradient.
    still = _named(labels, (last == 0) | (change == 0))
    if still and ((last > 0) & (change > 0)).any():
        yield Finding(
            *("frozen", "warn", "training"),
            f"Nothing is learnt in {still}: the gradient or the update is 0.",
            "If that is not meant, look for a `stop_gradient`, an output that the loss does not "
            "use, or units that died at a high learning rate.",
            int(steps[0]),
        )
    other_medians = np.array([np.median(np.delete(last, index)) for index in range(len(last))])
    layer_medians = np.median(gradients, axis=1)
    exploding = (last > 100 * np.maximum(layer_medians, 1e-12)) | (
        last > 1e3 * np.maximum(other_medians, 1e-12)
    )
    exploding &= last > 1.0
    if exploding.any():
        yield Finding(
            *("exploding", "warn", "training"),
            f"The gradient explodes in {_named(labels, exploding)}: {last[exploding].max():.3g}.",
            "Clip gradients, lower the learning rate, or normalize the inputs of that layer.",
            int(steps[-1]),
        )
    elif vanishing := _named(labels, (last > 0) & (last < 1e-5 * last.max())):
        yield Finding(
            *("vanishing", "warn", "training"),
            f"The gradient vanishes in {vanishing}: it is below a hundred-thousandth of the "
            "largest one.",
            "Add normalization or a residual connection, or change the initializer.",
            int(steps[-1]),
        )


def find_starved_experts(
    labels: Sequence[str], matrix: np.ndarray, limit: float
) -> Iterator[Finding]:
    """Finds experts of a mixture that get almost no token.

    Args:
        labels: `LAYER/EXPERT` of each row; a layer's experts share its load.
        matrix: The loads, a column for each step.
        limit: The share of an equal load below which an expert starves.
    """
    if matrix.shape[1] < _FEWEST_VECTORS:
        return
    load = matrix[:, -max(3, matrix.shape[1] // 5) :].mean(axis=1)
    layers: dict[str, list[int]] = {}
    for index, label in enumerate(labels[: len(load)]):
        layers.setdefault(label.rpartition("/")[0], []).append(index)
    for layer, rows in layers.items():
        total = load[rows].sum()
        starved = [row for row in rows if load[row] < limit * total / len(rows)]
        if total <= 0 or not starved or len(rows) < _FEWEST_ROWS:
            continue
        names = [labels[row].rpartition("/")[2] for row in starved]
        gets = 100 * load[starved].sum() / total
        is_single = len(names) == 1
        yield Finding(
            *("starved_expert", "warn", "training"),
            f"{'Expert' if is_single else 'Experts'} {_enumerate(names)} of {layer or 'the model'} "
            f"{'gets' if is_single else 'get'} {gets:.2g} % of the tokens; an equal share is "
            f"{100 * len(names) / len(rows):.3g} %.",
            "Add the callback `ExpertBalancing`, or a loss that balances the router.",
        )


def find_bottleneck(
    profile: Mapping[str, Any] | None,
    waits: np.ndarray,
    seconds: np.ndarray,
    limits: Thresholds,
) -> Iterator[Finding]:
    """Finds whether a step waits for its data, for the host to start operations, or computes."""
    wait = idle = None
    waits, seconds = waits[np.isfinite(waits)][-200:], seconds[np.isfinite(seconds)][-200:]
    if min(len(waits), len(seconds)) >= _FEWEST_TIMES and seconds.mean() > 0:
        wait = float(waits.mean() / seconds.mean())
    if profile:
        parts = profile["parts"]
        total = sum(parts.values()) or 1.0
        idle = parts.get("idle", 0.0) / total
        wait = parts.get("data_wait", 0.0) / total if wait is None else wait
    is_short = len(waits) > 0 and waits.mean() < _LEAST_WAIT
    if wait is not None and wait > limits.data_wait and not is_short:
        yield Finding(
            *("data_wait", "warn", "performance"),
            f"Waiting for data takes {min(100 * wait, 100):.0f} % of a step.",
            "Prepare batches in advance: more workers, `prefetch`, a cache, or less work for each "
            "sample.",
        )
    elif idle is not None and idle > limits.idle:
        yield Finding(
            *("overhead", "warn", "performance"),
            f"The device does nothing for {100 * idle:.0f} % of a step: the host is too slow to "
            "start its operations.",
            "Use a larger batch, `jit_compile=True`, or `graph.optimize`: fewer and larger "
            "operations.",
        )
    elif idle is not None and wait is not None:
        yield Finding(
            *("compute", "info", "performance"),
            f"The device computes for {100 * (1 - idle - wait):.0f} % of the step.",
            "Make the layers faster: half precision, or fewer operations.",
        )


def find_expensive_layer(profile: Mapping[str, Any]) -> Iterator[Finding]:
    """Names the layer that takes the most time by itself."""
    not_layers = ("", profile.get("model"))  # The model's own operations, in no other layer.
    layers = {
        path: sum(times) for path, times in profile["layers"].items() if path not in not_layers
    }
    total = sum(profile["parts"].values())
    path = max(layers, key=lambda layer: layers[layer], default=None)
    if path is not None and layers[path] > _LEAST_SHARE * total:
        yield Finding(
            *("expensive_layer", "info", "performance"),
            f"{path} takes {100 * layers[path] / total:.0f} % of the step.",
            "Make this one faster first.",
        )


def _shorten(text: str) -> str:
    return textwrap.shorten(text, _LONGEST, placeholder=" …")


def _noise(values: np.ndarray) -> float:
    """Returns by how much the logarithms of losses differ from step to step."""
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


def _named(labels: Sequence[str], chosen: np.ndarray) -> str:
    return _enumerate([label for label, is_in in zip(labels, chosen, strict=False) if is_in])


def _enumerate(names: Sequence[str]) -> str:
    if len(names) > _MOST_NAMES:
        return f"{names[0]}, {names[1]} and {len(names) - 2} others"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
