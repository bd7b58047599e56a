"""The result of a profile: the time of a training step, by what it was spent on."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class StepProfile:
    """The time of a training step, by its parts and by layers. Printed, it is a table.

    All times are wall time, in seconds a step, means over the steps. Their sum is `step_seconds`:
    while several threads work, each has an equal share of that time. XLA fuses operations of
    several layers into one, whose time it gives to one of them.

    Args:
        steps: integer. The number of measured steps.
        step_seconds: float. The time of a step.
        parts: dict. Seconds by part. `"forward"` and `"backward"` are the passes through the
            layers. `"loss"` includes the metrics, and `"optimizer"` the clipping of gradients.
            `"rest"` is other work. In `"data_wait"` nothing ran because the next batch was not
            there, and in `"idle"` nothing ran for another reason, such as Python between two
            operations.
        layers: dict. Forward and backward seconds by the path of a layer, without the layers in it.
        model: string. The path of the model itself, whose time in `layers` is that of its
            operations outside of other layers.
        tool: string. The profiler that measured.
        device: string. The device that computed.
        trace_file: string. The file with the trace, which Perfetto (ui.perfetto.dev) opens.

    Example:

    >>> import keras, numpy as np
    >>> from keras_deepseek.training import Trainer
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> trainer = Trainer(model, optimizer="sgd", loss="mse")
    >>> profile = trainer.profile(np.ones((64, 4)), np.ones((64, 1)))
    >>> profile.steps, list(profile.parts)[:3]
    (5, ['forward', 'backward', 'loss'])
    """

    steps: int
    step_seconds: float
    parts: dict[str, float]
    layers: dict[str, list[float]]
    model: str
    tool: str
    device: str
    trace_file: str

    @property
    def unassigned(self) -> float:
        """The share of the work that belongs to no layer, nor to the loss or the optimizer."""
        work = self.step_seconds - self.parts["idle"] - self.parts["data_wait"]
        return self.parts["rest"] / work if work > 0 else 0.0

    def __str__(self) -> str:
        """Returns a table of the parts and of the ten most expensive layers."""
        layers = sorted(self.layers.items(), key=lambda item: -sum(item[1]))[:10]
        rows = [*self.parts.items(), *((path, sum(times)) for path, times in layers)]
        rows.insert(len(self.parts), ("step", self.step_seconds))
        width = max(len(name) for name, _ in rows)
        return "\n".join(
            f"{name:{width}}{1e3 * spent:10,.2f} ms{spent / max(self.step_seconds, 1e-12):7.1%}"
            for name, spent in rows
        )
