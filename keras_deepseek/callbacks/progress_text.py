"""Formats metrics, numbers and durations as texts for the progress display."""

from collections.abc import Mapping

from keras_deepseek.callbacks.training_pace import TrainingPace

_SHOWN_APART = (
    "learning_rate",
    "steps_per_second",
    "samples_per_second",
    "tokens_per_second",
    "process_memory_bytes",
    "device_memory_bytes",
    "model_flops_utilization",
)
_RATES = ("tokens", "samples", "steps")


def describe(pace: TrainingPace, logs: Mapping[str, float], *, of_epoch: bool = False) -> list[str]:
    """Returns the texts of the progress display for pace and metrics, the most important first.

    Figures that a callback added to `logs`, such as tokens a second, replace those of the pace.
    With `of_epoch`, the pace is that of the whole epoch.
    """
    figures = {**pace.figures(of_epoch=of_epoch), **logs}
    parts = []
    for unit in _RATES:
        if f"{unit}_per_second" in figures:
            parts.append(f"{count(figures[f'{unit}_per_second'])} {unit}/s")
            break
    if "model_flops_utilization" in figures:
        parts.append(f"MFU: {figures['model_flops_utilization']:.1%}")
    parts += [
        f"{name}: {number(value)}" for name, value in logs.items() if name not in _SHOWN_APART
    ]
    if "learning_rate" in figures:
        parts.append(f"learning_rate: {number(figures['learning_rate'])}")
    for name, words in (("process_memory_bytes", "memory"), ("device_memory_bytes", "device")):
        if name in figures:
            parts.append(f"{words}: {figures[name] / 2**30:.2f} GiB")
    return parts


def number(value: object) -> str:
    """Formats a metric's value with four digits; returns other values as text."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def count(value: float) -> str:
    """Formats a large number with three digits and a unit letter, such as `1.25M`."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Formats a number of seconds as `12s`, `3:04` or `1:02:03`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    minutes, second = divmod(round(seconds), 60)
    if not minutes:
        return f"{second}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"
