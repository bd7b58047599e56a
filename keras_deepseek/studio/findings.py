"""Findings: sentences that say what the numbers of a run mean, and what to try.

Each is a pure function, and says nothing of a healthy run.
"""

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_deepseek.studio.curve_findings import (
    Finding,
    Points,
    Thresholds,
    find_divergence,
    find_leap,
    find_not_finite,
    find_overfitting,
    find_plateau,
    find_spike,
)
from keras_deepseek.studio.run_reader import RunReader

_LEVELS = ("bad", "warn", "info")
_MIN_VECTORS, _MIN_ROWS, _MIN_TIMES = 4, 2, 5
"""The number of steps, of layers or experts, and of measured steps by which a rule judges."""
_MIN_WAIT = 1e-3
"""A wait of fewer seconds a step is no finding."""
_MIN_SHARE = 0.05
"""A layer that takes a smaller share of the step is no finding."""
_EXPLODING_RATIO, _OTHERS_RATIO = 100, 1e3
"""A gradient explodes at this many times its own median, or that of the other layers."""
_VANISHING_RATIO = 1e-5
"""A gradient vanishes below this share of the largest one."""
_RECENT_STEPS = 200  # By these the wait for data is judged.
_MAX_NAMES = 3
_MAX_LENGTH = 300  # Characters.


def find(reader: RunReader, thresholds: Thresholds) -> list[Finding]:
    """Returns the findings of a run, the worst first."""
    with reader.lock:
        findings = list(_find(reader, thresholds))
    return sorted(findings, key=lambda finding: _LEVELS.index(finding.level))


def _find(reader: RunReader, limits: Thresholds) -> Iterator[Finding]:
    def points(name: str) -> Points:
        series = reader.series(name)
        return series.steps, series.values

    # `step_loss` has the loss of each step, and `loss` the mean since the epoch began.
    loss_name = "step_loss" if "step_loss" in reader.ends else "loss"
    loss, validation = points(loss_name), points("val_loss")
    yield from find_end(reader.state(), reader.properties, loss[0], reader.last_time())
    not_finite = list(find_not_finite(loss, validation, points("gradient_norm")))
    yield from not_finite
    diverged: list[Finding] = []
    # Such a mean drops when an epoch begins: a rise after that says nothing.
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
    if profile and "reason" in profile:  # The reason why the profile could not be made.
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
            textwrap.shorten(text, _MAX_LENGTH, placeholder=" …") for text in (reason, advice)
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


def find_dead_layers(
    labels: Sequence[str], steps: Sequence[int], gradients: np.ndarray, updates: np.ndarray
) -> Iterator[Finding]:
    """Finds layers that don't learn, and layers whose gradient explodes.

    Args:
        labels: The layer of each row.
        steps: The step of each column.
        gradients: The norms of the gradients, of shape `(layers, steps)`.
        updates: The ratios of updates to weights, of the same shape.
    """
    count = gradients.shape[1]
    if count < _MIN_VECTORS or len(labels) < _MIN_ROWS:
        return
    lately = _lately(count)
    last, change = (np.median(matrix[:, lately], axis=1) for matrix in (gradients, updates))
    # Weight decay changes weights that get no gradient.
    frozen = _named(labels, (last == 0) | (change == 0))
    if frozen and ((last > 0) & (change > 0)).any():
        yield Finding(
            *("frozen", "warn", "training"),
            f"Nothing is learnt in {frozen}: the gradient or the update is 0.",
            "If that is not meant, look for a `stop_gradient`, an output that the loss does not "
            "use, or units that died at a high learning rate.",
            int(steps[0]),
        )
    other_medians = np.array([np.median(np.delete(last, index)) for index in range(len(last))])
    layer_medians = np.median(gradients, axis=1)
    limits = np.fmin(_EXPLODING_RATIO * layer_medians, _OTHERS_RATIO * other_medians)
    exploding = (last > limits) & (last > 1.0)
    if exploding.any():
        yield Finding(
            *("exploding", "warn", "training"),
            f"The gradient explodes in {_named(labels, exploding)}: {last[exploding].max():.3g}.",
            "Clip gradients, lower the learning rate, or normalize the inputs of that layer.",
            int(steps[-1]),
        )
    elif vanishing := _named(labels, (last > 0) & (last < _VANISHING_RATIO * last.max())):
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
    if matrix.shape[1] < _MIN_VECTORS:
        return
    load = matrix[:, _lately(matrix.shape[1])].mean(axis=1)
    layers: dict[str, list[int]] = {}
    for index, label in enumerate(labels[: len(load)]):
        layers.setdefault(label.rpartition("/")[0], []).append(index)
    for layer, rows in layers.items():
        total = load[rows].sum()
        starved = [row for row in rows if load[row] < limit * total / len(rows)]
        if total <= 0 or not starved or len(rows) < _MIN_ROWS:
            continue
        names = [labels[row].rpartition("/")[2] for row in starved]
        percent = 100 * load[starved].sum() / total
        is_single = len(names) == 1
        yield Finding(
            *("starved_expert", "warn", "training"),
            f"{'Expert' if is_single else 'Experts'} {_enumerate(names)} of {layer or 'the model'} "
            f"{'gets' if is_single else 'get'} {percent:.2g} % of the tokens; an equal share is "
            f"{100 * len(names) / len(rows):.3g} %.",
            "Add the callback `ExpertBalancing`, or a loss that balances the router.",
        )


def find_bottleneck(
    profile: Mapping[str, Any] | None,
    waits: np.ndarray,
    seconds: np.ndarray,
    limits: Thresholds,
) -> Iterator[Finding]:
    """Finds what takes the time of a step: data, the host's start of operations, or computing."""
    wait = idle = None  # Shares of a step; `None` if they are not known.
    waits = waits[np.isfinite(waits)][-_RECENT_STEPS:]
    seconds = seconds[np.isfinite(seconds)][-_RECENT_STEPS:]
    if min(len(waits), len(seconds)) >= _MIN_TIMES and seconds.mean() > 0:
        wait = float(waits.mean() / seconds.mean())
    if profile:
        parts = profile["parts"]
        total = sum(parts.values()) or 1.0
        idle = parts.get("idle", 0.0) / total
        wait = parts.get("data_wait", 0.0) / total if wait is None else wait
    is_short = len(waits) > 0 and waits.mean() < _MIN_WAIT
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
    if path is not None and layers[path] > _MIN_SHARE * total:
        yield Finding(
            *("expensive_layer", "info", "performance"),
            f"{path} takes {100 * layers[path] / total:.0f} % of the step.",
            "Make this one faster first.",
        )


def _lately(count: int) -> slice:
    """Returns the last fifth of a number of steps, at least three."""
    return slice(-max(3, count // 5), None)


def _shorten(text: str) -> str:
    return textwrap.shorten(text, _MAX_LENGTH, placeholder=" …")


def _named(labels: Sequence[str], chosen: np.ndarray) -> str:
    return _enumerate([label for label, is_in in zip(labels, chosen, strict=False) if is_in])


def _enumerate(names: Sequence[str]) -> str:
    if len(names) > _MAX_NAMES:
        return f"{names[0]}, {names[1]} and {len(names) - 2} others"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
