"""One official example of keras.io: its model, data of its shapes, and what it is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np


def same(model: keras.Model) -> keras.Model:
    """Returns the model itself, where that is what its author would export."""
    return model


@dataclass(frozen=True)
class Example:
    """A model of keras.io in tiny, written in the same form of code.

    Args:
        path: string. The example's place on keras.io, as in `"vision/mnist_convnet"`.
        make_model: Function without arguments that returns a new model, with equal weights where
            the seed is set. One with a `compile` of its own is not compiled yet.
        make_data: Function from a number of rows to `(x, y)`. `y` is `None` where `x` has it, as
            where `x` is a `PyDataset`.
        compile_arguments: Function without arguments that returns new arguments of `compile`.
        fresh_inputs: Function without arguments that returns inputs of the exported part: of other
            batch sizes than the training's, and of other lengths where they are free.
        exported_part: Function from the trained model to what its author would export or serve.
            Defaults to the model itself.
        has_own_step: boolean. Whether the model's class overrides `train_step`. Such a one has no
            validation here, as in its example. Defaults to `False`.
        export_options: Function without arguments that returns what `Exporter` is given beside the
            format. Defaults to `dict`, nothing.
        mixes_rows: boolean. Whether what a row gives depends on the rows of its batch, so that an
            engine warns and serves it right one by one alone. Defaults to `False`.
        half_options: dict. What `Trainer` is given beside `fp16_enabled`. Defaults to `{}`.
        differs_in_keras: dict. By backend, the logs that Keras's own `fit` has otherwise than on
            the other backends, so that they are not compared there. Defaults to `{}`.
        refusals: dict. By step, a regular expression of the message that it is refused with; or a
            dict of these by backend. Defaults to `{}`.
        reasons: dict. By step that is refused, why in a few words. Defaults to `{}`.
    """

    path: str
    make_model: Callable[[], keras.Model]
    make_data: Callable[[int], tuple[Any, Any]]
    compile_arguments: Callable[[], dict[str, Any]]
    fresh_inputs: Callable[[], list[Any]]
    exported_part: Callable[[keras.Model], keras.Model] = same
    has_own_step: bool = False
    export_options: Callable[[], Mapping[str, Any]] = dict
    mixes_rows: bool = False
    half_options: Mapping[str, Any] = field(default_factory=dict)
    differs_in_keras: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refusals: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def refusal(self, step: str) -> str | None:
        """Returns the expression of the message that a step is refused with on this backend."""
        refusal = self.refusals.get(step)
        if isinstance(refusal, Mapping):
            return refusal.get(keras.backend.backend())
        return refusal


EPSILON = 1e-4
"""That of the optimizers. With Keras's 1e-7 a gradient that is nothing but rounding, as that of a
bias before a batch normalisation, moves its weight as far as any other."""


def adam(learning_rate: float) -> keras.optimizers.Optimizer:
    """Returns an Adam that rounding does not move."""
    return keras.optimizers.Adam(learning_rate, epsilon=EPSILON)


def random(seed: int = 0) -> np.random.Generator:
    """Returns the generator that data come from: the same numbers each time."""
    return np.random.default_rng(seed)


def planted_ids(num_rows: int, length: int, vocabulary: int, num_classes: int = 2) -> Any:
    """Returns rows of token ids, and the class of each row: whatever rounds the ids loses it.

    The ids of a row leave its class as the remainder of a division by 8, and most are above 256,
    from where bfloat16 has even numbers alone.
    """
    generator = random()
    classes = np.arange(num_rows) % num_classes
    bases = 8 * generator.integers(vocabulary // 16, vocabulary // 8, (num_rows, length))
    return bases + classes[:, None], classes
