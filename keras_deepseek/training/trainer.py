"""The trainer: the whole of a training around `model.fit`.

It stands between the layers and models that a user built and the graph optimisation and export that
follow. What goes in is a `keras.Model`, and it stays one.
"""

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.callbacks.run_recorder import RunRecorder
from keras_deepseek.checks import check_file_path
from keras_deepseek.errors import InvalidInputError, NotSupportedError, unknown_name_message
from keras_deepseek.training.checkpoints.checkpoint_options import Best, CheckpointOptions
from keras_deepseek.training.checkpoints.checkpoints import Checkpoints
from keras_deepseek.training.cluster.cluster_options import ClusterOptions
from keras_deepseek.training.cluster.device import DeviceMap
from keras_deepseek.training.cluster.evaluate_together import evaluate_together, without_none
from keras_deepseek.training.cluster.placement import DistributedStrategy, Placement
from keras_deepseek.training.cluster.predict_together import predict_together
from keras_deepseek.training.cluster.same_arguments import check_same_arguments, plain_attributes
from keras_deepseek.training.cluster.start_processes import share_random_state, start_processes
from keras_deepseek.training.cluster.step_replicas import find_replicas
from keras_deepseek.training.data.position_data import check_data, no_data_error
from keras_deepseek.training.fit.compile_model import build_model, compile_model, set_seed
from keras_deepseek.training.fit.fit_callbacks import Callbacks, check_callback, list_callbacks
from keras_deepseek.training.fit.overridden_fit import call_fit, keras_fit_arguments
from keras_deepseek.training.fit.session import Session
from keras_deepseek.training.fit.step_loop import Step, make_steps
from keras_deepseek.training.fit.step_plan import StepPlan
from keras_deepseek.training.parameter_server.chief import Chief
from keras_deepseek.training.step.gradient_clip import GradientClip
from keras_deepseek.training.step.gradients.gradient_residual import (
    GradientCompression,
    make_residual,
)
from keras_deepseek.training.step.loss.batch_loss import BatchLoss
from keras_deepseek.training.step.loss.missing_loss import check_test_loss
from keras_deepseek.training.step.named_layers import find_named_layers
from keras_deepseek.training.step.precision import is_slower_in_half
from keras_deepseek.training.step.rematerialization import Remat
from keras_deepseek.training.step.step_guard import Action, StepGuard
from keras_deepseek.training.step.step_options import StepOptions
from keras_deepseek.training.tuning.batch_size_search import BatchSizeSearch, search_batch_size
from keras_deepseek.training.tuning.learning_rate_search import (
    LearningRateSearch,
    search_learning_rate,
)
from keras_deepseek.training.tuning.memory_report import MemoryReport, measure_memory
from keras_deepseek.training.tuning.short_training import ShortTraining

_OPTIONS_OF_STEPS = {"sample_weight", "class_weight", "shuffle", "steps_per_epoch"}

_logger = logging.getLogger(__name__)


class Trainer:
    """Trains a Keras model, in half precision, with checkpoints and over devices where asked.

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
        metrics: Keras metric or its name, or list of them. Defaults to `None`, those that the model
            was compiled with.
        fp16_enabled: boolean. Half precision: float16 with dynamic loss scaling on a GPU, bfloat16
            on TPU and CPU; `fit` prints which. On JAX's CPU, where convolutions and recurrent
            layers only lose by it, a model that has such stays in float32. Defaults to `False`.
        precision: string. A Keras dtype policy for the training step in place of `fp16_enabled`, as
            in `"mixed_bfloat16"`. Defaults to `None`, the model's own policy.
        float32_layers: list of strings. The names of layers, as in `["fourier_*"]`, that half
            precision leaves out, with all that is inside them. Defaults to `()`.
        micro_batches: integer. The parts that each batch is computed in, one after the other, to
            hold the activations of one part alone; the update is that of the whole batch. Defaults
            to `1`.
        gradient_clip: tuple. How gradients are clipped, as in `("global_norm", 1.0)`: by `"value"`,
            the `"norm"` of each variable's, the `"global_norm"` of all, or `"adaptive"`, by the
            norm of the weights (Brock et al., 2021). Defaults to `None`.
        guard: `StepGuard`, or its action alone: what is done about a step whose loss or gradients
            are not finite. `"stop"`, `"skip"` or `"roll_back"`. Defaults to `None`: a loss or
            weights that are not finite end the training, some steps later.
        remat: boolean or list of strings. The blocks whose inputs alone are kept for the backward
            pass, which computes them anew: by the names of layers, as in `["block_*"]`, or `True`
            for the model's own layers that hold layers. Defaults to `False`.
        device_map: dict. The index of the device to use by kind, as in `{"gpu": 0, "tpu": 1}`, or
            a list of them, as in `{"gpu": [0, 1]}`. Kinds that this machine lacks are left out, and
            where it has none of them, the CPU is used. Several devices divide the rows of each
            batch, on TensorFlow and PyTorch by how fast they are. Or, on these two and for a model
            that does not fit on one device, the devices of layers by patterns of their names, as in
            `{"encoder*": "gpu:0", "decoder.*": "gpu:1"}`: as in `remat`, or a regular expression
            for all of the name. The first that matches counts, for the layers inside too; all
            others have the first device. Defaults to `None`, the device that Keras chooses.
        distributed_strategy: `"allreduce"`: over all processes that `world_size` or the environment
            speaks of, each with the same data, and on JAX and TensorFlow over all devices of one.
            Or, on JAX, a `keras.distribution` object, such as a `ModelParallel` with layouts of
            your own; on TensorFlow a strategy of `tf.distribute`, which says over which devices,
            or a `MultiWorkerMirroredStrategy`, which has joined the processes.
            `"parameter_server"`, or a `ParameterServer`: asynchronous updates by workers and
            servers, on TensorFlow by its own coordinator, as those of a `ParameterServerStrategy`,
            else by Ray. Defaults to `None`: that of `keras-deepseek launch`, where it has started
            several processes and no `world_size` is given; else this process trains alone.
        world_size: integer. The number of processes that train. Defaults to `None`: with a
            `distributed_strategy` the environment says it, as what started the processes has set
            it up, and one where it says nothing.
        rank: integer. Which of them this one is. Defaults to `None`, as for `world_size`.
        coordinator: string. `HOST:PORT` of the process with rank 0. Defaults to `None`, as for
            `world_size`.
        gradient_compression: How gradients are made smaller between the processes of an
            `"allreduce"`: `"bfloat16"` or `"float16"` halve the bytes, `"low_rank"`, or a
            `LowRank`, sends few hundredths. What is left out of a gradient is added to the next
            one. Defaults to `None`: they are sent in float32.
        keep_memory: boolean. Keeps the memory that a step frees for the next step. On a CPU,
            small batches of a large model may train a quarter faster. It changes the settings of
            glibc's `malloc` for the whole process while it trains, and does nothing with another
            C library or where the environment sets them. Defaults to `False`.
        callbacks: Keras callback, or iterable of them. Defaults to `None`.
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
            with them the order of shuffled data. Defaults to `None`: they are left alone.

    Raises:
        InvalidInputError: An argument is unknown or contradicts another, or the environment.
        NotSupportedError: This release has no such strategy, or compression, on this backend.
        PeerLostError: A process that is to train with this one has not come.

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
        float32_layers: Sequence[str] = (),
        micro_batches: int = 1,
        gradient_clip: GradientClip | None = None,
        guard: StepGuard | Action | None = None,
        remat: Remat = False,
        device_map: DeviceMap | None = None,
        distributed_strategy: DistributedStrategy | None = None,
        world_size: int | None = None,
        rank: int | None = None,
        coordinator: str | None = None,
        gradient_compression: GradientCompression | None = None,
        keep_memory: bool = False,
        callbacks: Callbacks = None,
        run_record: str | os.PathLike[str] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        keep_last: int = 2,
        keep_best: Best | None = None,
        seed: int | None = None,
    ) -> None:
        options = StepOptions(
            fp16_enabled=fp16_enabled,
            precision=precision,
            float32_layers=float32_layers,
            micro_batches=micro_batches,
            gradient_clip=gradient_clip,
            guard=guard,
            remat=remat,
            keep_memory=keep_memory,
        )
        checkpoint_options = CheckpointOptions(
            checkpoint_dir, checkpoint_every, keep_last, keep_best
        )
        cluster_options = ClusterOptions(
            device_map, distributed_strategy, world_size, rank, coordinator, gradient_compression
        )
        self._callbacks = list_callbacks(callbacks)
        if run_record is not None:
            self.add_callback(RunRecorder(check_file_path("run_record", run_record)))
        self._join(cluster_options)
        checkpoints = None
        if checkpoint_dir is not None:
            checkpoints = Checkpoints(checkpoint_options, self._processes, self._residual)
        self._seed = set_seed(seed)
        share_random_state(self._processes)
        with self._placement.while_building():
            self.model = build_model(model)
        notice = self._choose_precision(options)
        with self._placement.in_use():
            compile_model(self.model, optimizer, loss, metrics, self.policy)
            self._plan = self._make_plan(options, checkpoints, model)
        self._check_peers(options, cluster_options)
        self._processes.broadcast_variables(self.model.variables)
        self._placement.place(self.model)
        self._session = Session(
            self.model,
            self._plan,
            self._processes,
            self._placement,
            checkpoints,
            seed=self._seed,
            policy=self.policy,
            serve=None if self._chief is None else self._chief.training,
        )
        if notice:
            self._session.print_once(notice)

    def _join(self, options: ClusterOptions) -> None:
        """Finds the processes and devices of the training, and joins the processes."""
        resolved = options.resolve()
        self.cluster = resolved.spec
        self._chief = None
        if resolved.servers is not None:
            self._chief = Chief(resolved.servers, self.cluster)
        self._processes = self._chief or start_processes(self.cluster)
        self._residual = make_residual(options.gradient_compression, self._processes)
        has_own_device = self._processes.world_size > 1 and not self._processes.is_one_program
        local_rank = self.cluster.local_rank if has_own_device else None
        self._placement = Placement(options.device_map, resolved.strategy, local_rank)

    def _choose_precision(self, options: StepOptions) -> str:
        """Chooses the dtype policy of the step; returns what to tell the user of it."""
        kind = self._placement.kind
        self.policy = options.policy(kind)
        if not options.fp16_enabled:
            return ""
        if is_slower_in_half(self.model, kind):
            self.policy = None
            find_named_layers(self.model, "float32_layers", options.float32_layers)
        notice = _describe_chosen(self.policy)
        _logger.info(notice)
        return notice

    def _make_plan(
        self, options: StepOptions, checkpoints: Checkpoints | None, given: Any
    ) -> StepPlan:
        """Returns the plan of the steps; a parameter server's workers are started by it."""
        served = None
        if self._chief is not None:
            served = self._chief.serve(
                self,
                None if isinstance(given, keras.Model) else given,
                self._placement.kind,
                guard=options.guard,
                policy=self.policy,
                **options.worker_options(),
            )
        replicas = find_replicas(
            self.model,
            self._processes,
            self._placement,
            is_compressed=self._residual is not None,
        )
        devices = self._placement.devices
        is_in_parts = options.micro_batches > 1 or replicas is not None or devices is not None
        self._loss = BatchLoss(self.model, is_in_parts=is_in_parts)
        return StepPlan(
            self.model,
            self.train_step,
            self._loss,
            options,
            self.policy,
            is_own_compute=type(self).train_step is not Trainer.train_step,
            checkpoints=checkpoints,
            replicas=replicas,
            devices=devices,
            layers=self._placement.layers,
            residual=self._residual,
            served=served,
        )

    def _check_peers(self, options: StepOptions, cluster: ClusterOptions) -> None:
        """Raises an error if the processes were given different models or options."""
        guard = options.guard
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        check_same_arguments(
            self._processes,
            {
                "the model": [(each.shape, each.dtype) for each in self.model.variables],
                "the optimizer": plain_attributes(optimizer),
                "the precision": self.policy and self.policy.name,
                "float32_layers": list(options.float32_layers),
                "micro_batches": options.micro_batches,
                "gradient_clip": options.gradient_clip,
                "guard": plain_attributes(guard) if isinstance(guard, StepGuard) else guard,
                "remat": options.remat,
                "gradient_compression": cluster.gradient_compression,
            },
        )

    def add_callback(self, callback: keras.callbacks.Callback) -> None:
        """Adds a callback to every `fit` from here on.

        Args:
            callback: `keras.callbacks.Callback`.

        Raises:
            InvalidInputError: It is no Keras callback.
        """
        self._callbacks.append(check_callback(callback))

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Callbacks = None,
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
            epochs: integer. How often the data are gone through, `0` for no step. Defaults to `1`.
            verbose: `"auto"` or `1` for a `callbacks.ProgressDisplay`, `2` for its plain lines, `0`
                for nothing. Defaults to `"auto"`.
            callbacks: One or several, for this call alone, after the trainer's own. Defaults to
                `None`.
            resume: boolean. Whether to go on from the newest checkpoint that is whole, with the
                same arguments as before. Where there is none, the training begins. Defaults to
                `False`.
            **options: Further arguments of `keras.Model.fit`: `validation_data`, `shuffle`, ...

        Returns:
            The `History` of `keras.Model.fit`; of a resumed training, from its very beginning.

        Raises:
            InvalidInputError: The model has no loss, or there is no batch; or an argument does not
                fit, such as a `batch_size` beside data that come in batches; or there are two
                schedules; or a loop over `steps` is open; or the model was compiled again, by
                another trainer; or model or data are not those of the checkpoint; or
                `checkpoint_dir` holds another training.
            CheckpointError: A checkpoint can't be written, as on a full disk; or all there are
                can't be read.
        """
        goes_on = resume or self._session.resumed is not None
        known = inspect.signature(self.model.fit).parameters
        unknown = set(options) - set(known)
        if unknown and all(each.kind != inspect.Parameter.VAR_KEYWORD for each in known.values()):
            raise InvalidInputError(unknown_name_message("argument of fit()", min(unknown), known))
        arguments = {"x": x, "y": y, "batch_size": batch_size, "epochs": epochs, **options}
        arguments |= {"callbacks": callbacks, "verbose": verbose}

        def train(arguments: dict[str, Any]) -> keras.callbacks.History:
            with self._session.training(arguments, self._callbacks, resume=resume) as given:
                return keras.Model.fit(self.model, **given)

        history = call_fit(self.model, arguments, train)
        if epochs and not self._plan.num_steps and not goes_on:  # Keras on TensorFlow says nothing.
            raise no_data_error()
        return history

    def steps(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        callbacks: Callbacks = None,
        *,
        resume: bool = False,
        **options: Any,
    ) -> Iterator[Step]:
        """Trains the model as `fit` does, step by step, for a loop of your own.

        What happens between two steps may read and change the model, its optimizer and its data.
        Leaving the loop ends the training, with a checkpoint of the last step where there is a
        `checkpoint_dir`. SIGTERM between two steps is heeded after the next one; where the loop is
        left instead, it goes to who had it before, after that checkpoint. There is no validation:
        call `evaluate`, which begins the means of the logs anew.

        An iterator that has a name, as in `steps = trainer.steps(...)`, is left by `steps.close()`.

        Args:
            x: Training data, as for `fit`. Defaults to `None`.
            y: Targets, where `x` does not hold them. Defaults to `None`.
            batch_size: integer. Rows of a batch, where `x` does not come in batches. Defaults to
                `None`: 32.
            epochs: integer. How often the data are gone through, `0` for no step. Defaults to `1`.
            callbacks: One or several, for this call alone, after the trainer's own. Defaults to
                `None`.
            resume: boolean. Whether to go on from the newest checkpoint, as for `fit`. Defaults to
                `False`.
            **options: `sample_weight`, `class_weight`, `shuffle` and `steps_per_epoch`.

        Yields:
            A `Step` after each: its `number` in its `epoch`, both counted from 0, and its `logs`.

        Raises:
            InvalidInputError: As for `fit`, when the first step is asked for.
            CheckpointError: As for `fit`.

        Example:

        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> trainer = Trainer(model, optimizer="sgd", loss="mse")
        >>> for step in trainer.steps(np.ones((64, 4)), np.ones((64, 1))):
        ...     if step.logs["loss"] < 0.01:
        ...         break
        """
        if unknown := set(options) - _OPTIONS_OF_STEPS:
            raise InvalidInputError(
                unknown_name_message("argument of steps()", min(unknown), _OPTIONS_OF_STEPS)
            )
        if self._chief is not None:
            raise NotSupportedError(
                "Between two steps of a parameter server others are under way, so that a loop over "
                "steps() would see no model of its own. Use fit, with callbacks."
            )
        arguments = {"x": x, "y": y, "batch_size": batch_size, "epochs": epochs, **options}
        arguments |= {"callbacks": callbacks, "verbose": 0}
        arguments = keras_fit_arguments(self.model, arguments)
        training = self._session.training(
            arguments, self._callbacks, resume=resume, needs_stream=True
        )
        with training as given:
            yield from make_steps(
                self.model,
                given["x"],
                given["callbacks"],
                epochs=epochs,
                initial_epoch=given.get("initial_epoch", 0),
            )

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
        return self._session.resume()

    def train_step(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Returns the loss of a batch, or of one of its micro-batches.

        Override it for a training of your own: the signature is the same on every backend, and so
        is what follows, from the gradients by the model's trainable variables to the update. It
        may assign the variables of the model and of its metrics, and no others. Metrics that the
        model was compiled with are told by `self.model.compute_metrics`. Its loss is that
        of the model, `self.model.compute_loss`, in an override too, unless it says otherwise.

        Args:
            x: Inputs of the batch.
            y: Targets. Defaults to `None`.
            sample_weight: Weights of the samples. Defaults to `None`.

        Returns:
            A scalar tensor; or a dict with it as `"loss"`, further scalars to log, whose names no
            metric has, and `"weight"`: a scalar, what the loss is a mean over, such as the number
            of tokens, by which micro-batches count. Without it they count alike. Of further scalars
            an epoch logs those of its last batch.

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
        return self._loss(x, y, sample_weight)

    def evaluate(
        self, x: Any = None, y: Any = None, batch_size: int | None = None, **options: Any
    ) -> Any:
        """Returns the loss and the metrics on test data, computed by the model's own policy.

        Of several processes, each returns those on all of the data.

        Args:
            x: Test data as `keras.Model.evaluate` takes it.
            y: Targets, where `x` does not hold them. Defaults to `None`.
            batch_size: integer. Rows of a batch. Defaults to `None`: 32, where `x` does not come in
                batches.
            **options: Further arguments of `keras.Model.evaluate`.
        """
        check_data(x, None, "test data")
        check_test_loss(self.model)
        with (
            self._placement.in_use(self.model),
            backend.current().step.restoring_variables(self.model),
        ):
            return evaluate_together(self.model, x, y, batch_size, self._processes, **options)

    def predict(self, x: Any, batch_size: int | None = None, **options: Any) -> Any:
        """Returns the model's outputs as NumPy arrays, computed by the model's own policy.

        Args:
            x: Inputs as `keras.Model.predict` takes them.
            batch_size: integer. Rows of a batch. Defaults to `None`: 32, where `x` does not come in
                batches.
            **options: Further arguments of `keras.Model.predict`.
        """
        check_data(x, None, "data to predict")
        options |= without_none(batch_size=batch_size)
        with (
            self._placement.in_use(self.model),
            backend.current().step.restoring_variables(self.model),
        ):
            return predict_together(self.model, x, self._processes, **options)

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
            self._short_training(),
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
        return search_batch_size(
            self._short_training(), x, y, sample_weight, start=start, most=most
        )

    def measure_memory(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        *,
        sample_weight: Any = None,
        class_weight: Any = None,
    ) -> MemoryReport:
        """Returns the bytes that a step holds: of weights, gradients, optimizer and activations.

        They are counted for the first batch, with the trainer's precision, micro-batches and
        `remat`, and no step is made. It leaves no trace, as `find_learning_rate`.

        Args:
            x: Training data, as `fit` takes them. Defaults to `None`.
            y: Targets, where `x` does not hold them. Defaults to `None`.
            batch_size: integer. Rows of a batch, where `x` does not come in batches. Defaults to
                `None`: 32.
            sample_weight: Weights of the samples, beside arrays. Defaults to `None`.
            class_weight: dict. Weights by class. Defaults to `None`.

        Raises:
            InvalidInputError: There is no batch, the model has no loss, or it has a `train_step` of
                its own.
        """
        data = {
            "x": x,
            "y": y,
            "batch_size": batch_size,
            "sample_weight": sample_weight,
            "class_weight": class_weight,
        }
        return measure_memory(self.model, self._plan, self._short_training(), data)

    def _short_training(self) -> ShortTraining:
        if self._plan.is_served:
            raise NotSupportedError(
                "Workers of a parameter server make no steps that leave no trace. Try them by a "
                "Trainer without a distributed_strategy."
            )
        if self.cluster.world_size > 1:
            raise NotSupportedError(
                f"One of {self.cluster.world_size} processes can't try steps of its own. Do so in "
                "a process that trains alone."
            )
        return ShortTraining(self.model, self._session.in_training)


def _describe_chosen(policy: keras.DTypePolicy | None) -> str:
    """Returns in words what `fp16_enabled` means for a training."""
    if policy is not None:
        return f"fp16_enabled: the training step computes by {policy.name!r}."
    return (
        "fp16_enabled: the training stays in float32: half precision only slows convolutions and "
        "recurrent layers down on JAX's CPU. precision='mixed_bfloat16' takes it all the same."
    )
