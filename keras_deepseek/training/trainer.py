"""The trainer: the whole of a training around `model.fit`.

It stands between the layers and models that a user built and the graph optimisation and export that
follow. What goes in is a `keras.Model`, and it stays one.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import keras

from keras_deepseek import backend
from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.backend.keras_internals import compile_arguments
from keras_deepseek.callbacks.run_recorder import RunRecorder
from keras_deepseek.training.cluster import ClusterSpec, Strategy
from keras_deepseek.training.device import choose_device
from keras_deepseek.training.no_loss import RefuseNoLoss, no_loss_error
from keras_deepseek.training.precision import (
    training_policy,
    training_step_in,
    with_loss_scaling,
)


class Trainer:
    """Trains a Keras model on one device, in half precision where asked.

    Choose it over a bare `model.fit` for half precision that ends with the training: the step
    computes in half precision on float32 master weights, and `predict`, export and serving compute
    by the model's own policy again.

    Args:
        model: `keras.Model`. It is compiled here, trained in place and stays what it was.
        optimizer: `keras.optimizers.Optimizer`, or its name. Defaults to `None`, the optimizer that
            the model was compiled with.
        loss: Keras loss, its name, or a structure of them for several outputs. Defaults to `None`,
            the loss that the model was compiled with.
        metrics: list of Keras metrics or names. Defaults to `None`, those that the model was
            compiled with.
        fp16_enabled: boolean. Half precision: float16 with dynamic loss scaling on a GPU, bfloat16
            on TPU and CPU. Which of them is logged. Defaults to `False`.
        precision: string. A Keras dtype policy for the training step in place of `fp16_enabled`, as
            in `"mixed_bfloat16"`. Defaults to `None`, the model's own policy.
        device_map: dict. The index of the device to use by kind, as in `{"gpu": 0, "tpu": 1}`: the
            first kind that this machine has is used, and the CPU where it has none. Defaults to
            `None`, the device that Keras chooses.
        distributed_strategy: `"allreduce"` or `"parameter_server"`. This release trains in one
            process and refuses what needs more. Defaults to `None`.
        world_size: integer. The number of processes that train. Defaults to `1`.
        rank: integer. Which of them this one is. Defaults to `0`.
        callbacks: iterable of Keras callbacks. Defaults to `None`.
        run_record: string or path. A file to record the run in, see `artifacts.RunRecord`. Defaults
            to `None`, no record.

    Raises:
        InvalidInputError: An argument is unknown or contradicts another.
        NotSupportedError: More than one process is asked for.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    >>> trainer = Trainer(
    ...     model=model,
    ...     optimizer="adam",
    ...     loss="sparse_categorical_crossentropy",
    ...     fp16_enabled=True,
    ... )
    >>> history = trainer.fit(np.ones((8, 4)), np.zeros(8), verbose=0)
    >>> trainer.predict(np.ones((2, 4)), verbose=0).dtype
    dtype('float32')
    """

    def __init__(  # noqa: PLR0913 - one place says all about a training.
        self,
        model: keras.Model,
        *,
        optimizer: keras.optimizers.Optimizer | str | None = None,
        loss: Any = None,
        metrics: Any = None,
        fp16_enabled: bool = False,
        precision: str | None = None,
        device_map: Mapping[str, int] | None = None,
        distributed_strategy: Strategy | None = None,
        world_size: int = 1,
        rank: int = 0,
        callbacks: Iterable[keras.callbacks.Callback] | None = None,
        run_record: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(model, keras.Model):
            raise InvalidInputError(
                f"`model` must be a keras.Model; received {type(model).__name__}: {model!r}."
            )
        if not isinstance(fp16_enabled, bool):
            raise InvalidInputError(f"`fp16_enabled` is True or False; received {fp16_enabled!r}.")
        count_devices = backend.current().count_devices
        self.model = model
        self.cluster = ClusterSpec(distributed_strategy, world_size, rank)
        self.device = choose_device(device_map, count_devices) if device_map else None
        self.policy = training_policy(
            precision, fp16_enabled, (self.device or _default_kind(count_devices)).split(":")[0]
        )
        self._callbacks: list[keras.callbacks.Callback] = []
        for callback in callbacks or ():
            self.add_callback(callback)
        if run_record is not None:
            self.add_callback(RunRecorder(run_record))
        self._compile(optimizer, loss, metrics)

    def add_callback(self, callback: keras.callbacks.Callback) -> None:
        """Adds a callback to every `fit` from here on.

        Args:
            callback: `keras.callbacks.Callback`.

        Raises:
            InvalidInputError: It is no Keras callback.
        """
        if not isinstance(callback, keras.callbacks.Callback):
            raise InvalidInputError(
                f"Expected a keras.callbacks.Callback; received {type(callback).__name__}: "
                f"{callback!r}."
            )
        self._callbacks.append(callback)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Iterable[keras.callbacks.Callback] | None = None,
        **options: Any,
    ) -> keras.callbacks.History:
        """Trains the model.

        Args:
            x: Training data as `keras.Model.fit` takes it: arrays, `tf.data`, `PyDataset`, a torch
                `DataLoader`, a generator. Defaults to `None`.
            y: Targets, where `x` does not hold them. Defaults to `None`.
            batch_size: integer. Rows of a batch, where `x` does not come in batches. Defaults to
                `None`: 32.
            epochs: integer. How often the data are gone through. Defaults to `1`.
            verbose: `"auto"`, `0`, `1` or `2`: Keras's progress display. Defaults to `"auto"`.
            callbacks: Callbacks for this call alone, after the trainer's own. Defaults to `None`.
            **options: Further arguments of `keras.Model.fit`: `validation_data`, `shuffle`, ...

        Returns:
            The `History` of `keras.Model.fit`.

        Raises:
            InvalidInputError: The model has no loss.
        """
        chosen = [*self._callbacks, *(callbacks or ())]
        if self.model.loss is None:  # It may add losses in its layers, or compute its own.
            chosen.append(RefuseNoLoss())
        try:
            with self._on_device(), training_step_in(self.model, self.policy):
                return self.model.fit(
                    x,
                    y,
                    batch_size=batch_size,
                    epochs=epochs,
                    verbose=verbose,
                    callbacks=chosen,
                    **options,
                )
        except ValueError as error:
            if "No loss to compute" in str(error):
                raise no_loss_error(self.model) from error
            raise

    def evaluate(self, x: Any = None, y: Any = None, **options: Any) -> Any:
        """Returns the loss and the metrics on test data, computed by the model's own policy.

        Args:
            x: Test data as `keras.Model.evaluate` takes it.
            y: Targets, where `x` does not hold them. Defaults to `None`.
            **options: Further arguments of `keras.Model.evaluate`.
        """
        with self._on_device():
            return self.model.evaluate(x, y, **options)

    def predict(self, x: Any, **options: Any) -> Any:
        """Returns the model's outputs as NumPy arrays, computed by the model's own policy.

        Args:
            x: Inputs as `keras.Model.predict` takes them.
            **options: Further arguments of `keras.Model.predict`.
        """
        with self._on_device():
            return self.model.predict(x, **options)

    def _compile(self, optimizer: Any, loss: Any, metrics: Any) -> None:
        given = {"optimizer": optimizer, "loss": loss, "metrics": metrics}
        given = {name: value for name, value in given.items() if value is not None}
        settings = compile_arguments(self.model) if self.model.compiled else {}
        if self.model.compiled:
            settings["optimizer"] = self.model.optimizer  # The object, with its state.
        settings.update(given)
        if settings.get("optimizer") is None:
            raise InvalidInputError(
                f"Model {self.model.name!r} was not compiled with an optimizer: pass "
                "Trainer(..., optimizer=...), as in optimizer='adam'."
            )
        compiled = settings["optimizer"]
        settings["optimizer"] = with_loss_scaling(_known("optimizer", compiled), self.policy)
        _known("loss", settings.get("loss"))
        if given or settings["optimizer"] is not compiled:
            self.model.compile(**settings, auto_scale_loss=False)

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        return keras.device(self.device) if self.device else contextlib.nullcontext()


def _known(kind: Literal["optimizer", "loss"], value: Any) -> Any:
    """Returns what a name or a config stands for, or says that it is unknown."""
    if not isinstance(value, str) and not (kind == "optimizer" and isinstance(value, dict)):
        return value
    find = keras.optimizers.get if kind == "optimizer" else keras.losses.get
    try:
        return find(value)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(
            f"Unknown {kind} {value!r}: expected an object of Keras's, or its name."
        ) from error


def _default_kind(count_devices: Callable[[str], int]) -> str:
    return next((kind for kind in ("tpu", "gpu") if count_devices(kind)), "cpu")
