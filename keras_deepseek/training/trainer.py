"""The trainer: the whole of a training around `model.fit`.

It stands between the layers and models that a user built and the graph optimisation and export that
follow. What goes in is a `keras.Model`, and it stays one.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import keras

from keras_deepseek import backend
from keras_deepseek.artifacts.argument_check import check_integer
from keras_deepseek.artifacts.checkpoint import Checkpoint
from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.backend.keras_internals import compile_arguments
from keras_deepseek.backend.keras_training import (
    call_for_training,
    compute_training_loss,
    own_train_step,
    update_metrics,
)
from keras_deepseek.callbacks.lr_scheduler import refuse_two_schedules
from keras_deepseek.callbacks.run_recorder import RunRecorder
from keras_deepseek.training.batch_size_search import BatchSizeSearch, search_batch_size
from keras_deepseek.training.checkpoints import Best, Checkpoints
from keras_deepseek.training.cluster import ClusterSpec, Strategy
from keras_deepseek.training.device import choose_device
from keras_deepseek.training.gradient_clip import GradientClip, check_gradient_clip
from keras_deepseek.training.learning_rate_search import (
    LearningRateSearch,
    search_learning_rate,
)
from keras_deepseek.training.loss_weight import weigh_loss
from keras_deepseek.training.no_loss import RefuseNoLoss, no_loss_error
from keras_deepseek.training.precision import (
    step_in_precision,
    training_policy,
    with_loss_scaling,
)
from keras_deepseek.training.short_training import ShortTraining
from keras_deepseek.training.step_in_place import StepInPlace
from keras_deepseek.training.training_state import write_weights
from keras_deepseek.training.training_step import TrainingStep


class Trainer:
    """Trains a Keras model on one device, in half precision and with checkpoints where asked.

    Choose it over a bare `model.fit` for half precision that ends with the training: the step
    computes in half precision on float32 master weights, and `predict`, export and serving compute
    by the model's own policy again. Choose it too for a training that may be killed at any step:
    with a `checkpoint_dir` and `fit(..., resume=True)` it ends with the very numbers of one that
    was not.

    Args:
        model: `keras.Model`, or a function without arguments that builds it, called after `seed`
            was set. It is compiled here, trained in place and stays what it was.
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
        micro_batches: integer. The parts that each batch is computed in, one after the other, to
            hold the activations of one part alone; the update is that of the whole batch. Defaults
            to `1`.
        gradient_clip: tuple. How gradients are clipped, as in `("global_norm", 1.0)`: by `"value"`,
            the `"norm"` of each variable's, the `"global_norm"` of all, or `"adaptive"`, by the
            norm of the weights (Brock et al., 2021). Defaults to `None`.
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
        checkpoint_dir: string or path. The folder of the training's checkpoints. Defaults to
            `None`: none are taken.
        checkpoint_every: integer. The steps between two checkpoints. Defaults to `None`: one at the
            end of each epoch. There is always one at the end of the training.
        keep_last: integer. How many of the newest checkpoints are kept. Defaults to `2`.
        keep_best: tuple. Which are kept beside them, as in `("val_loss", "min", 1)`: the epochs'
            ends with the least `val_loss`, of which one. Defaults to `None`.
        seed: integer. Seeds Python, NumPy, Keras and the framework, before anything is built, and
            the order of shuffled data where there is a `checkpoint_dir`. Defaults to `None`: they
            are left alone.

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
        model: keras.Model | Callable[[], keras.Model],
        *,
        optimizer: keras.optimizers.Optimizer | str | None = None,
        loss: Any = None,
        metrics: Any = None,
        fp16_enabled: bool = False,
        precision: str | None = None,
        micro_batches: int = 1,
        gradient_clip: GradientClip | None = None,
        device_map: Mapping[str, int] | None = None,
        distributed_strategy: Strategy | None = None,
        world_size: int = 1,
        rank: int = 0,
        callbacks: Iterable[keras.callbacks.Callback] | None = None,
        run_record: str | os.PathLike[str] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        keep_last: int = 2,
        keep_best: Best | None = None,
        seed: int | None = None,
    ) -> None:
        if not isinstance(fp16_enabled, bool):
            raise InvalidInputError(f"`fp16_enabled` is True or False; received {fp16_enabled!r}.")
        self._checkpoints = None
        if checkpoint_dir is not None:
            self._checkpoints = Checkpoints(checkpoint_dir, checkpoint_every, keep_last, keep_best)
        elif checkpoint_every is not None or keep_best is not None:
            raise InvalidInputError(
                "`checkpoint_every` and `keep_best` are for checkpoints: name their folder, "
                "Trainer(..., checkpoint_dir=...)."
            )
        self._resumed: Checkpoint | None = None
        count_devices = backend.current().count_devices
        self.cluster = ClusterSpec(distributed_strategy, world_size, rank)
        self.device = choose_device(device_map, count_devices) if device_map else None
        self.policy = training_policy(
            precision, fp16_enabled, (self.device or _default_kind(count_devices)).split(":")[0]
        )
        self._seed = _set_seed(seed)
        with self._on_device():
            self.model = _built(model)
        self._callbacks: list[keras.callbacks.Callback] = []
        for callback in callbacks or ():
            self.add_callback(callback)
        self._recorder = None if run_record is None else RunRecorder(run_record)
        if self._recorder is not None:
            self.add_callback(self._recorder)
        self._compile(optimizer, loss, metrics)
        self._micro_batches = check_integer("micro_batches", micro_batches)
        self._gradient_clip = gradient_clip
        check_gradient_clip(gradient_clip, self.model.optimizer)
        self._step = self._make_step()

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
        *,
        resume: bool = False,
        **options: Any,
    ) -> keras.callbacks.History:
        """Trains the model.

        With a `checkpoint_dir`, SIGTERM ends the process with exit code 0 after the step that is
        being made, and after a checkpoint of it.

        Args:
            x: Training data as `keras.Model.fit` takes it: arrays, `tf.data`, `PyDataset`, a torch
                `DataLoader`, a generator. Defaults to `None`.
            y: Targets, where `x` does not hold them. Defaults to `None`.
            batch_size: integer. Rows of a batch, where `x` does not come in batches. Defaults to
                `None`: 32.
            epochs: integer. How often the data are gone through. Defaults to `1`.
            verbose: `"auto"`, `0`, `1` or `2`: Keras's progress display. Defaults to `"auto"`.
            callbacks: Callbacks for this call alone, after the trainer's own. Defaults to `None`.
            resume: boolean. Whether to go on from the newest checkpoint that is whole, with the
                same arguments as before. Where there is none, the training begins. Defaults to
                `False`.
            **options: Further arguments of `keras.Model.fit`: `validation_data`, `shuffle`, ...

        Returns:
            The `History` of `keras.Model.fit`; of a resumed training, from its very beginning.

        Raises:
            InvalidInputError: The model has no loss; or there are two schedules; or model or data
                are not those of the checkpoint; or `checkpoint_dir` holds another training.
            CheckpointError: A checkpoint can't be written, as on a full disk; or all there are
                can't be read.
        """
        if resume and self._resumed is None:
            self.resume()
        if self._recorder is not None:
            self._recorder.resume = resume or self._resumed is not None
        chosen = [*self._callbacks, *(callbacks or ())]
        refuse_two_schedules(self.model.optimizer, chosen)
        is_own_step = type(self).train_step is not Trainer.train_step
        if self.model.loss is None and not is_own_step:  # Its layers may add losses.
            chosen.append(RefuseNoLoss())
        arguments = {
            "x": x,
            "y": y,
            "batch_size": batch_size,
            "epochs": epochs,
            "verbose": verbose,
            "callbacks": chosen,
            **options,
        }
        try:
            with (
                self._lent_step(),
                self._with_checkpoints(arguments) as given,
            ):
                return self.model.fit(given.pop("x"), given.pop("y", None), **given)
        except ValueError as error:
            if "No loss to compute" in str(error):
                raise no_loss_error(self.model) from error
            raise

    def resume(self) -> int | None:
        """Makes the next `fit` go on from the newest checkpoint that is whole.

        A model that is built has the weights of the checkpoint from here on, to predict with; what
        else there is, `fit` puts back.

        Returns:
            The number of steps that were made before; `None` where there is no checkpoint, and the
            next `fit` begins a training.

        Raises:
            InvalidInputError: The trainer has no `checkpoint_dir`, or the model is not that of the
                checkpoint.
            CheckpointError: There are checkpoints, and none can be read.
        """
        if self._checkpoints is None:
            raise InvalidInputError(
                "There is nothing to resume from: name the folder of the checkpoints, "
                "Trainer(..., checkpoint_dir=...)."
            )
        self._resumed = self._checkpoints.latest()
        if self._resumed is None:
            return None
        if self.model.built:
            write_weights(self.model, self._resumed.state["variables"])
        return self._resumed.step

    def train_step(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Returns the loss of a batch, or of one of its micro-batches.

        Override it for a training of your own: the signature is the same on every backend, and so
        is what follows, from the gradients by the model's trainable variables to the update. It
        may assign the variables of the model and of its metrics, and no others. Its loss is that
        of the model, `self.model.compute_loss`, in an override too, unless it says otherwise.

        Args:
            x: Inputs of the batch.
            y: Targets. Defaults to `None`.
            sample_weight: Weights of the samples. Defaults to `None`.

        Returns:
            A scalar tensor; or a dict with it as `"loss"`, further scalars to log by name, and
            `"weight"`: a scalar, what the loss is a mean over, such as the number of tokens, by
            which micro-batches count. Without it they count alike.

        Example:

        >>> import keras, numpy as np
        >>> class Penalized(Trainer):
        ...     def train_step(self, x, y=None, sample_weight=None):
        ...         outputs = self.model(x, training=True)
        ...         penalty = 0.01 * keras.ops.mean(keras.ops.square(outputs))
        ...         loss = self.model.compute_loss(x, y, outputs, sample_weight)
        ...         return {"loss": loss + penalty, "penalty": penalty}
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> trainer = Penalized(model, optimizer="sgd", loss="mse")
        >>> sorted(trainer.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0).history)
        ['loss', 'penalty']
        """
        y_pred = call_for_training(self.model, x)
        loss = compute_training_loss(self.model, x, y, y_pred, sample_weight)
        update_metrics(self.model, x, y, y_pred, sample_weight)
        if self._micro_batches == 1:
            return loss
        return {"loss": loss, "weight": weigh_loss(self.model.loss, y, y_pred, sample_weight)}

    def find_learning_rate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        *,
        lowest: float = 1e-7,
        highest: float = 10.0,
        num_steps: int = 100,
        sample_weight: Any = None,
        class_weight: Any = None,
    ) -> LearningRateSearch:
        """Returns which learning rate to train with, by a short training whose rate grows.

        It ends early when the loss explodes, calls no callbacks, and leaves no trace: weights,
        optimizer, metrics and random numbers are what they were. A generator moves on.

        Args:
            x: Training data, as `fit` takes them. Defaults to `None`.
            y: Targets, where `x` does not hold them. Defaults to `None`.
            batch_size: integer. Rows of a batch: those of the training that is to come. Defaults to
                `None`: 32.
            lowest: float. The rate of the first step. Defaults to `1e-7`.
            highest: float. The rate of the last step. Defaults to `10.0`.
            num_steps: integer. The number of steps. Defaults to `100`.
            sample_weight: Weights of the samples, beside arrays. Defaults to `None`.
            class_weight: dict. Weights by class. Defaults to `None`.

        Raises:
            InvalidInputError: A number does not fit, the optimizer has a schedule, or the model's
                `steps_per_execution` is not 1.
        """
        return search_learning_rate(
            self.model,
            ShortTraining(self.model, self._lent_step),
            lowest=lowest,
            highest=highest,
            num_steps=num_steps,
            x=x,
            y=y,
            batch_size=batch_size,
            sample_weight=sample_weight,
            class_weight=class_weight,
        )

    def find_batch_size(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        start: int = 8,
        most: int | None = None,
    ) -> BatchSizeSearch:
        """Returns which batch size to train with, by timing steps of growing sizes.

        The size is doubled until memory runs out, and then narrowed down, or until twice the size
        brings less than 5 % more samples a second. It calls no callbacks and leaves no trace, as
        `find_learning_rate`.

        Args:
            x: Arrays, whose rows are repeated where there are too few; or a function from a batch
                size to a `PyDataset`, or to a tuple of arrays, of that size.
            y: Targets, beside arrays. Defaults to `None`.
            sample_weight: Weights of the samples, beside arrays. Defaults to `None`.
            start: integer. The first size. Defaults to `8`.
            most: integer. The largest size. Defaults to `None`: the number of rows of arrays, and
                no limit where `x` is a function.

        Raises:
            InvalidInputError: The data are of one batch size, a number does not fit, or the model's
                `steps_per_execution` is not 1.
        """
        training = ShortTraining(self.model, self._lent_step)
        return search_batch_size(training, x, y, sample_weight, start=start, most=most)

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

    def _make_step(self) -> StepInPlace | None:
        """Returns what takes the place of the model's training step, if anything does."""
        model = self.model
        if not own_train_step(model):
            step = TrainingStep(
                model,
                self.train_step,
                micro_batches=self._micro_batches,
                gradient_clip=self._gradient_clip,
            )
            train_step = backend.current().make_train_step(model, step)
        else:
            self._refuse_what_needs_our_step()
            if self.policy is None:
                return None
            train_step = model.train_step
        if self.policy is not None:
            train_step = step_in_precision(model, self.policy, train_step)
        return StepInPlace(model, train_step)

    def _refuse_what_needs_our_step(self) -> None:
        asked = {
            "`micro_batches`": self._micro_batches > 1,
            "`gradient_clip`": self._gradient_clip is not None,
            "the trainer's own": type(self).train_step is not Trainer.train_step,
        }
        if names := [name for name, is_asked in asked.items() if is_asked]:
            raise InvalidInputError(
                f"Model {self.model.name!r} has a `train_step` of its own, which knows nothing of "
                f"{' and '.join(names)}. Write it as `Trainer.train_step`."
            )

    def _with_checkpoints(
        self, arguments: dict[str, Any]
    ) -> contextlib.AbstractContextManager[dict[str, Any]]:
        if self._checkpoints is None:
            return contextlib.nullcontext(arguments)
        resumed, self._resumed = self._resumed, None
        return self._checkpoints.training(self.model, arguments, resumed, self._seed)

    @contextlib.contextmanager
    def _lent_step(self) -> Iterator[None]:
        with self._on_device(), self._step.use() if self._step else contextlib.nullcontext():
            yield

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        return keras.device(self.device) if self.device else contextlib.nullcontext()


def _set_seed(seed: int | None) -> int | None:
    if seed is not None:
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise InvalidInputError(
                f"`seed` must be an integer from 0 to 2**32 - 1; received {seed!r}."
            )
        keras.utils.set_random_seed(seed)
    return seed


def _built(model: keras.Model | Callable[[], keras.Model]) -> keras.Model:
    made = model
    if not isinstance(model, keras.Model) and callable(model):
        made = model()
    if not isinstance(made, keras.Model):
        raise InvalidInputError(
            "`model` must be a keras.Model, or a function that builds one; received "
            f"{type(made).__name__}: {made!r}."
        )
    return made


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
