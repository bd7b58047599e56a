"""The trainer: everything around `model.fit` that a training needs."""

import dataclasses
import functools
import inspect
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Never, TypeVar

import keras

from keras_deepseek import backend
from keras_deepseek.callbacks.run_recorder import RunRecorder
from keras_deepseek.checks import check_file_path, check_integer
from keras_deepseek.errors import InvalidInputError, NotSupportedError, unknown_name_message
from keras_deepseek.training.checkpoints.checkpoints import Best, CheckpointOptions, Checkpoints
from keras_deepseek.training.cluster.cluster_resolver import ClusterOptions
from keras_deepseek.training.cluster.device import DeviceMap
from keras_deepseek.training.cluster.evaluate_together import (
    evaluate_together,
    predict_together,
    without_none,
)
from keras_deepseek.training.cluster.placement import DistributedStrategy
from keras_deepseek.training.cluster.start_processes import share_random_state
from keras_deepseek.training.data.position_data import check_data, no_data_error
from keras_deepseek.training.fit.compile_model import (
    build_model,
    check_optimizable,
    compile_model,
    refuse_unknown_arguments,
    set_seed,
)
from keras_deepseek.training.fit.fit_callbacks import Callbacks, check_callback, list_callbacks
from keras_deepseek.training.fit.overridden_fit import call_overridden_fit, keras_fit_arguments
from keras_deepseek.training.fit.recording import plain_arguments
from keras_deepseek.training.fit.session import Session
from keras_deepseek.training.fit.step_loop import Step, make_steps
from keras_deepseek.training.fit.step_plan import StepPlan
from keras_deepseek.training.step.gradient_clip import GradientClip
from keras_deepseek.training.step.gradients.gradient_residual import GradientCompression
from keras_deepseek.training.step.rematerialization import Remat
from keras_deepseek.training.step.step_guard import Action, StepGuard
from keras_deepseek.training.step.step_options import StepOptions
from keras_deepseek.training.step.step_profiler import StepProfile
from keras_deepseek.training.training_cluster import TrainingCluster
from keras_deepseek.training.tuning.batch_size_search import BatchSizeSearch, search_batch_size
from keras_deepseek.training.tuning.learning_rate_search import (
    LearningRateSearch,
    search_learning_rate,
)
from keras_deepseek.training.tuning.measurements import MemoryReport, measure_memory, profile_steps
from keras_deepseek.training.tuning.short_training import ShortTraining

_Result = TypeVar("_Result", LearningRateSearch, BatchSizeSearch, MemoryReport, StepProfile)
_OPTIONS_OF_STEPS = {"sample_weight", "class_weight", "shuffle", "steps_per_epoch"}


class Trainer:
    """Trains a Keras model, in half precision, with checkpoints, and over devices if asked.

    Choose it over a bare `model.fit` for half precision in the training step only: the step
    computes in half precision on float32 master weights, while `predict`, export and serving use
    the model's own dtype policy. Choose it also for a training that may be killed at any step: with
    `checkpoint_dir` and `fit(..., resume=True)` it ends with the same numbers as one that was not.

    Args:
        model: `keras.Model`, or a function without arguments that builds one, which is called after
            `seed` was set. It is compiled here and trained in place.
        optimizer: `keras.optimizers.Optimizer`, or its name. Defaults to `None`: the optimizer that
            the model was compiled with.
        loss: Keras loss, its name, or a structure of them for several outputs. Defaults to `None`:
            the loss that the model was compiled with.
        metrics: Keras metric or its name, or list of them. Defaults to `None`: those that the model
            was compiled with.
        loss_weights: list or dict of numbers, one for each loss, as in
            `{"price": 1.0, "sales": 0.5}`: the loss is their weighted sum. Defaults to `None`:
            those that the model was compiled with, otherwise 1.
        weighted_metrics: Keras metric or its name, or list of them, whose values are weighted by
            `sample_weight` or `class_weight`. Defaults to `None`, as for `metrics`.
        fp16_enabled: boolean. Half precision: float16 with dynamic loss scaling on a GPU, bfloat16
            on TPU and CPU. `fit` prints the choice. On JAX's CPU, a model with convolutions or
            recurrent layers stays in float32, where it is faster. Defaults to `False`.
        precision: `"bfloat16"`, `"float16"` or `"float32"`: the precision that layers compute in
            during the training step, instead of `fp16_enabled`. Their weights stay float32. A
            `keras.DTypePolicy` is taken too. Defaults to `None`: the model's own policy.
        float32_layers: list of strings. The names of layers that half precision leaves out, as in
            `["fourier_*"]`, with the layers inside them. Defaults to `()`.
        micro_batches: integer. Gradient accumulation: the number of parts that a batch is divided
            into. Only the activations of one part are in memory. The update is that of the whole
            batch. Defaults to `1`.
        gradient_clip: tuple. The kind and the bound of gradient clipping, as in
            `("global_norm", 1.0)`. `"value"` clips each number, `"norm"` the gradient of each
            variable, `"global_norm"` all gradients together, `"adaptive"` each gradient by the norm
            of its weights (Brock et al., 2021). With `gradient_accumulation_steps` of the optimizer
            it clips the accumulated gradient, as Keras does. Defaults to `None`.
        guard: `StepGuard`, or only its action: `"stop"`, `"skip"` or `"roll_back"`. The reaction to
            a step whose loss or gradients are not finite. Defaults to `None`: a loss or weights
            that are not finite end the training, some steps later.
        remat: boolean or list of strings. Rematerialization (gradient checkpointing): the names of
            layers that keep only their inputs and compute the rest again in the backward pass, as
            in `["block_*"]`. `True` means the model's own layers that hold layers. Defaults to
            `False`.
        device_map: dict. The index of the device to use by kind, as in `{"gpu": 0, "tpu": 1}`, or a
            list of indices, as in `{"gpu": [0, 1]}`. A single kind that this machine lacks is an
            error. Of several kinds, those that it lacks are ignored; if it lacks all of them, the
            CPU is used. Several devices divide the rows of each batch, on TensorFlow and PyTorch in
            proportion to their speed. For a model that does not fit on one device, TensorFlow and
            PyTorch also take the devices of layers, by patterns of their names, as in
            `{"encoder*": "gpu:0", "decoder.*": "gpu:1"}`: patterns as in `remat`, or regular
            expressions for the whole name. The first match counts, also for the layers inside;
            other layers use the first device. Defaults to `None`: the device that Keras chooses.
        distributed_strategy: `"allreduce"` trains in all processes of `world_size` or of the
            environment, each with the same data, and on JAX and TensorFlow on all devices of one
            process. `"parameter_server"` or a `ParameterServer` makes asynchronous updates by
            workers and servers: on TensorFlow by its own coordinator, like a
            `ParameterServerStrategy`, otherwise by Ray. JAX also takes a `keras.distribution`
            object, such as a `ModelParallel` with your own layouts. TensorFlow also takes a
            strategy of `tf.distribute`, which names the devices, or a
            `MultiWorkerMirroredStrategy`, which has joined the processes. Defaults to `None`: the
            strategy of `keras-deepseek launch` if it has started several processes and no
            `world_size` is given; otherwise this process trains alone.
        world_size: integer. The number of processes that train. Defaults to `None`: with a
            `distributed_strategy`, the number that the launcher has set in the environment, or one.
        rank: integer. The rank of this process. Defaults to `None`, as for `world_size`.
        coordinator: string. `HOST:PORT` of the process with rank 0. Defaults to `None`, as for
            `world_size`.
        gradient_compression: The compression of gradients between the processes of an
            `"allreduce"`. `"bfloat16"` or `"float16"` send half of the bytes; `"low_rank"` or a
            `LowRank` send a few hundredths. The rest of a gradient is added to the next one (error
            feedback). Defaults to `None`: gradients are sent in float32.
        shard_optimizer: boolean. ZeRO: each process of an `"allreduce"` keeps the optimizer's state
            of its part of the weights alone, gets the sums of these gradients, and sends the others
            its updated part. The model must be built. Defaults to `False`.
        optimize_graph: boolean. Runs the model in the training step by a flat program of Keras
            operations that `graph.optimize` has rewritten to do less work; its outputs are equal
            except for rounding, but dropout may draw other numbers. For each new shape both are
            compared first; after a difference the model runs, and a line of the log says why. Your
            own layers run as they are if a trace can't see all that they do. Costs alone decide,
            and nothing is timed: to see what it brings, use `graph.optimize(model, batch,
            mode="train")` and train that. Choose it for models that read few of their rows
            (classifiers by the first token), and for LoRA.
            Normalizations then keep more memory in half precision.
            Defaults to `False`.
        tune_malloc: boolean. Keeps the memory that a step frees for the next step. On a CPU,
            small batches of a large model may train a quarter faster. It changes the settings of
            glibc's `malloc` for the whole process; after the training they have glibc's usual
            values, but are fixed. It does nothing with another C library or where the environment
            sets them. Defaults to `False`.
        layer_statistics: boolean. Records the norm of the gradient and the ratio of update to
            weights of each layer in each step, and the load of each expert, if the run is recorded.
            It reads all weights and gradients once more. Defaults to `False`.
        callbacks: Keras callback, or iterable of them. Defaults to `None`.
        run_record: string or path. A file that records the run, see `artifacts.RunRecord`. Defaults
            to `None`: no record.
        checkpoint_dir: string or path. The folder of the checkpoints. Defaults to `None`: no
            checkpoints.
        checkpoint_every: integer. The number of steps between two checkpoints. Defaults to `None`:
            one at the end of each epoch. There is always one at the end of the training.
        keep_last: integer. The number of newest checkpoints to keep. Defaults to `2`.
        keep_best: tuple. The best checkpoints to keep as well: a log, `"min"` or `"max"`, and their
            number, as in `("val_loss", "min", 1)`. Defaults to `None`.
        seed: integer. Seeds Python, NumPy, Keras and the framework before the model is built, and
            the order of shuffled data. Defaults to `None`: nothing is seeded.

    Raises:
        InvalidInputError: An argument is unknown, or contradicts another or the environment.
        NotSupportedError: This backend does not support the strategy or the compression.
        PeerLostError: Another process of the training did not connect.

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

    def __init__(  # noqa: PLR0913 - all options of a training.
        self,
        model: keras.Model | Callable[[], keras.Model],
        *,
        optimizer: keras.optimizers.Optimizer | str | None = None,
        loss: Any = None,
        metrics: Any = None,
        loss_weights: Any = None,
        weighted_metrics: Any = None,
        fp16_enabled: bool = False,
        precision: str | keras.DTypePolicy | None = None,
        float32_layers: Sequence[str] = (),
        micro_batches: int = 1,
        gradient_clip: GradientClip | None = None,
        guard: StepGuard | Action | None = None,
        remat: Remat = False,
        optimize_graph: bool = False,
        device_map: DeviceMap | None = None,
        distributed_strategy: DistributedStrategy | None = None,
        world_size: int | None = None,
        rank: int | None = None,
        coordinator: str | None = None,
        gradient_compression: GradientCompression | None = None,
        shard_optimizer: bool = False,
        tune_malloc: bool = False,
        layer_statistics: bool = False,
        callbacks: Callbacks = None,
        run_record: str | os.PathLike[str] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        keep_last: int = 2,
        keep_best: Best | None = None,
        seed: int | None = None,
        **unknown: Never,
    ) -> None:
        refuse_unknown_arguments(unknown, Trainer)
        del unknown
        own_arguments = plain_arguments(locals())
        options = StepOptions(
            fp16_enabled=fp16_enabled,
            precision=precision,
            float32_layers=float32_layers,
            micro_batches=micro_batches,
            gradient_clip=gradient_clip,
            guard=guard,
            remat=remat,
            optimize_graph=optimize_graph,
            layer_statistics=layer_statistics,
            tune_malloc=tune_malloc,
        )
        checkpoint_options = CheckpointOptions(
            checkpoint_dir, checkpoint_every, keep_last, keep_best
        )
        cluster_options = ClusterOptions(
            device_map,
            distributed_strategy,
            world_size,
            rank,
            coordinator,
            gradient_compression,
            shard_optimizer,
        )
        self._callbacks = list_callbacks(callbacks)
        self._recorder: RunRecorder | None = None
        if run_record is not None:
            self._recorder = RunRecorder(check_file_path("run_record", run_record))
            self.add_callback(self._recorder)
        self._cluster = TrainingCluster(cluster_options)
        self.cluster = self._cluster.spec
        processes, placement = self._cluster.processes, self._cluster.placement
        self._seed = set_seed(seed)
        share_random_state(processes)
        checkpoints = None
        if checkpoint_dir is not None:
            residual = self._cluster.residual
            parts = self._cluster.parts
            checkpoints = Checkpoints(checkpoint_options, processes, residual, parts, self._seed)
        with placement.while_building():
            self.model = build_model(model)
        self.policy, notice = options.choose_policy(self.model, placement.kind)
        with placement.in_use():
            compile_model(
                self.model,
                optimizer,
                loss,
                metrics,
                self.policy,
                loss_weights=loss_weights,
                weighted_metrics=weighted_metrics,
            )
            if options.optimize_graph:
                uses_servers = self._cluster.chief is not None
                check_optimizable(self.model, placement, uses_servers=uses_servers)
            make_model = None if isinstance(model, keras.Model) else model
            own_step = None if type(self).train_step is Trainer.train_step else self.train_step
            self._plan = StepPlan(
                self.model,
                own_step,
                options,
                self.policy,
                checkpoints=checkpoints,
                parallelism=self._cluster.start_workers(self, make_model, options, self.policy),
            )
            self._batch_loss = self._plan.loss
        self._session = Session(
            self.model, self._plan, processes, placement, checkpoints, own_arguments
        )
        self._session.check_peers(
            gradient_compression=gradient_compression, shard_optimizer=shard_optimizer
        )
        processes.broadcast_variables(self.model.variables)
        placement.place(self.model)
        if notice:
            self._session.print_once(notice)

    def add_callback(self, callback: keras.callbacks.Callback) -> None:
        """Adds a callback to every later `fit`.

        Args:
            callback: `keras.callbacks.Callback`.

        Raises:
            InvalidInputError: It is not a Keras callback.
        """
        self._callbacks.append(check_callback(callback))

    def record_run(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Records every later training, as the argument `run_record` does.

        Results of `measure_memory`, `profile`, `find_learning_rate` and `find_batch_size` are
        recorded too.

        Args:
            path: string or path. The file of the run record. Defaults to `None`: the file that the
                trainer records already, otherwise `runs/MODEL-TIME.sqlite`.

        Returns:
            The path of the run record.

        Raises:
            InvalidInputError: The trainer records another file.

        Example:

        >>> import keras, tempfile
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> trainer = Trainer(model, optimizer="sgd", loss="mse")
        >>> trainer.record_run(tempfile.mkdtemp() + "/run.sqlite").name
        'run.sqlite'
        """
        if self._recorder is None:
            if path is None:
                # Trainings that start in the same second need a file each.
                now = f"{datetime.now():%Y%m%d-%H%M%S-%f}"[:-3]
                path = Path("runs", f"{self.model.name}-{now}.sqlite")
            self._recorder = RunRecorder(check_file_path("path", path))
            self.add_callback(self._recorder)
        recorded = Path(self._recorder.path)
        if path is not None and Path(path) != recorded:
            raise InvalidInputError(
                f"This trainer records its run in {str(recorded)!r}; received {str(path)!r}. Make "
                "another Trainer for another record."
            )
        return recorded

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

        With a `checkpoint_dir`, SIGTERM lets the current step finish, takes a checkpoint, and exits
        the process with code 0.

        Args:
            x: Training data as `keras.Model.fit` takes them: arrays, `tf.data`, `PyDataset`, a
                torch `DataLoader`, a generator. Defaults to `None`.
            y: Targets, if `x` does not contain them. Defaults to `None`.
            batch_size: integer. Defaults to `None`: 32, if `x` does not come in batches.
            epochs: integer. The number of epochs, `0` for no step. Defaults to `1`.
            verbose: `"auto"` or `1` for a `callbacks.ProgressDisplay`, `2` for its plain lines, `0`
                for nothing. Defaults to `"auto"`.
            callbacks: Keras callback, or iterable of them, for this call only. They run after the
                trainer's own. Defaults to `None`.
            resume: boolean. Continues from the newest checkpoint that can be read. The arguments
                must be the same as before. Without a checkpoint, a training begins. Defaults to
                `False`.
            **options: Further arguments of `keras.Model.fit`: `validation_data`, `shuffle`, ...

        Returns:
            The `History` of `keras.Model.fit`. For a resumed training, it includes the epochs
            before.

        Raises:
            InvalidInputError: An argument is invalid, such as a `batch_size` for data that come in
                batches; the model has no loss; there is no batch; there are two schedules; a loop
                over `steps` is open; the model was compiled again, for example by another trainer;
                model or data differ from those of the checkpoint; or `checkpoint_dir` holds another
                training.
            CheckpointError: A checkpoint can't be written, for example on a full disk, or none can
                be read.
        """
        resumes = resume or self._session.resumed is not None
        parameters = inspect.signature(self.model.fit).parameters
        unknown = set(options) - set(parameters)
        if unknown and all(
            parameter.kind != inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
        ):
            raise InvalidInputError(
                unknown_name_message("fit() argument", min(unknown), parameters)
            )
        arguments = {"x": x, "y": y, "batch_size": batch_size, "epochs": epochs, **options}
        arguments |= {"callbacks": callbacks, "verbose": verbose}
        if type(self.model).fit is keras.Model.fit:
            history = self._fit(arguments, resume=resume)
        else:
            train = functools.partial(self._fit, resume=resume)
            history = call_overridden_fit(self.model, arguments, train)
        if epochs and not self._plan.step.num_steps and not resumes:
            raise no_data_error()  # Keras on TensorFlow raises no error.
        return history

    def _fit(self, arguments: dict[str, Any], *, resume: bool) -> keras.callbacks.History:
        with (
            backend.current().step.fuse_recurrent_layers(self.model),  # For the validation.
            self._session.training(arguments, self._callbacks, resume=resume) as fit_arguments,
        ):
            return keras.Model.fit(self.model, **fit_arguments)

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
        """Trains the model as `fit` does, but yields after each step.

        Between two steps, your code may read and change the model, its optimizer and its data.
        Leaving the loop ends the training, with a checkpoint of the last step if there is a
        `checkpoint_dir`. SIGTERM between two steps takes effect after the next step. If the loop is
        left instead, the former handler of SIGTERM is called after the checkpoint. There is no
        validation: call `evaluate`, which resets the means of the logs.

        An iterator with a name, as in `steps = trainer.steps(...)`, stays open after a `break`
        until `steps.close()`.

        Args:
            x: Training data, as for `fit`. Defaults to `None`.
            y: Targets, if `x` does not contain them. Defaults to `None`.
            batch_size: integer. Defaults to `None`: 32, if `x` does not come in batches.
            epochs: integer. The number of epochs, `0` for no step. Defaults to `1`.
            callbacks: As for `fit`. Defaults to `None`.
            resume: boolean. As for `fit`. Defaults to `False`.
            **options: `sample_weight`, `class_weight`, `shuffle` and `steps_per_epoch`.

        Yields:
            A `Step` with its `number` in its `epoch`, both counted from 0, and its `logs`.

        Raises:
            InvalidInputError: As for `fit`, when the first step is requested.
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
                unknown_name_message("steps() argument", min(unknown), _OPTIONS_OF_STEPS)
            )
        if self._plan.parallelism.uses_workers:
            raise NotSupportedError(
                "A parameter server runs several steps at a time, so that a loop over steps() has "
                "no model between two steps. Use fit, with callbacks."
            )
        arguments = {"x": x, "y": y, "batch_size": batch_size, "epochs": epochs, **options}
        arguments |= {"callbacks": callbacks, "verbose": 0}
        arguments = keras_fit_arguments(self.model, arguments)
        training = self._session.training(
            arguments, self._callbacks, resume=resume, needs_stream=True
        )
        with training as fit_arguments:
            yield from make_steps(
                self.model,
                fit_arguments["x"],
                fit_arguments["callbacks"],
                epochs=epochs,
                initial_epoch=fit_arguments.get("initial_epoch", 0),
            )

    def resume(self, step: Literal["best"] | None = None) -> int | None:
        """Makes the next `fit` continue from the newest checkpoint that can be read, or the best.

        A model that is built gets the weights of the checkpoint now, for example to predict. `fit`
        restores the rest.

        Args:
            step: `"best"` for the best checkpoint of `keep_best`. The next `fit` trains the epochs
                after it again, and removes their checkpoints when it begins. Defaults to `None`:
                the newest one.

        Returns:
            The number of steps that were trained before. `None` if there is no checkpoint: the next
            `fit` then begins a training.

        Raises:
            InvalidInputError: The trainer has no `checkpoint_dir`, the checkpoint is of another
                model, or none was kept as the best.
            CheckpointError: There are checkpoints, and none can be read.
        """
        return self._session.resume(step)

    def load_best(self, *, use_ema: bool = False) -> int:
        """Gives the model the weights of the best checkpoint, for example after `fit`.

        The next `fit` does not continue from it; for that call `resume(step="best")`. Without a
        trainer, use the function `load_best`.

        Args:
            use_ema: boolean. Loads the moving averages of the weights, of an optimizer with
                `use_ema=True`. Defaults to `False`.

        Returns:
            The number of steps that were trained before the checkpoint.

        Raises:
            InvalidInputError: The trainer has no `checkpoint_dir`, none was kept as the best, the
                model is not built, or there are no averages.
            CheckpointError: The best checkpoint is damaged.
        """
        return self._session.load_best(use_ema=use_ema)

    def train_step(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Returns the loss of a batch, or of a micro-batch.

        Override it for your own loss: it has the same signature on every backend. The trainer then
        computes the gradients by the model's trainable variables, and the update. An override may
        assign the variables of the model and of its metrics, and no others. Call
        `self.model.compute_loss` for the compiled loss, and `self.model.compute_metrics` to update
        the compiled metrics.

        Args:
            x: Inputs of the batch.
            y: Targets. Defaults to `None`.
            sample_weight: Weights of the samples. Defaults to `None`.

        Returns:
            A scalar tensor; or a dict with the scalar tensor as `"loss"`, further scalars to log,
            and `"weight"`. A log must not have the name of a metric; an epoch logs the values of
            its last batch. `"weight"` is a scalar, the number that the loss is a mean over, such as
            the number of tokens, by which micro-batches are weighted. Without it they are weighted
            equally.

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
        return self._batch_loss(x, y, sample_weight)

    def evaluate(
        self, x: Any = None, y: Any = None, batch_size: int | None = None, **options: Any
    ) -> Any:
        """Returns the loss and the metrics on test data, computed in the model's own dtype policy.

        Where several processes train, each returns the result for all of the data.

        Args:
            x: Test data as `keras.Model.evaluate` takes them. Defaults to `None`.
            y: Targets, if `x` does not contain them. Defaults to `None`.
            batch_size: integer. Defaults to `None`: 32, if `x` does not come in batches.
            **options: Further arguments of `keras.Model.evaluate`.
        """
        check_integer("batch_size", batch_size, default=1)
        self._plan.check_test_data(x, y)
        with (
            self._cluster.placement.in_use(self.model),
            backend.current().step.restoring_variables(self.model),
            self._plan.evaluating(),
            backend.current().step.fuse_recurrent_layers(self.model),
        ):
            return evaluate_together(
                self.model, x, y, batch_size, self._cluster.processes, **options
            )

    def predict(self, x: Any, batch_size: int | None = None, **options: Any) -> Any:
        """Returns the model's outputs as NumPy arrays, computed in the model's own dtype policy.

        Args:
            x: Inputs as `keras.Model.predict` takes them.
            batch_size: integer. Defaults to `None`: 32, if `x` does not come in batches.
            **options: Further arguments of `keras.Model.predict`.
        """
        check_integer("batch_size", batch_size, default=1)
        check_data(x, None, "data to predict")
        options |= without_none(batch_size=batch_size)
        with (
            self._cluster.placement.in_use(self.model),
            backend.current().step.restoring_variables(self.model),
            self._plan.evaluating(),
            backend.current().step.fuse_recurrent_layers(self.model),
        ):
            return predict_together(self.model, x, self._cluster.processes, **options)

    def find_learning_rate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        *,
        min_learning_rate: float = 1e-7,
        max_learning_rate: float = 10.0,
        num_steps: int = 100,
        sample_weight: Any = None,
        class_weight: Any = None,
    ) -> LearningRateSearch:
        """Returns a suggested learning rate, by a short training whose rate grows (range test).

        It ends early when the loss explodes, and calls no callbacks. Weights, optimizer, metrics
        and random numbers are restored afterwards. A generator is not reset.

        Args:
            x: Training data, as `fit` takes them. Defaults to `None`.
            y: Targets, if `x` does not contain them. Defaults to `None`.
            batch_size: integer. That of the planned training. Defaults to `None`: 32.
            min_learning_rate: float. The rate of the first step. Defaults to `1e-7`.
            max_learning_rate: float. The rate of the last step. Defaults to `10.0`.
            num_steps: integer. The number of steps. Defaults to `100`.
            sample_weight: Weights of the samples, for arrays. Defaults to `None`.
            class_weight: dict. Weights by class. Defaults to `None`.

        Raises:
            InvalidInputError: A number is out of range, the optimizer has a schedule, or the
                model's `steps_per_execution` is not 1.
        """
        search = search_learning_rate(
            self.model,
            self._short_training(),
            min_learning_rate=min_learning_rate,
            max_learning_rate=max_learning_rate,
            num_steps=num_steps,
            x=x,
            y=y,
            batch_size=batch_size,
            sample_weight=sample_weight,
            class_weight=class_weight,
        )
        return self._record("learning_rate_search", search)

    def find_batch_size(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        min_batch_size: int = 8,
        max_batch_size: int | None = None,
    ) -> BatchSizeSearch:
        """Returns a suggested batch size, by timing steps of growing sizes.

        The size is doubled until twice the size brings less than 5 % more samples a second, or
        until memory runs out; then the largest size that fits is searched. It calls no callbacks,
        and restores the model as `find_learning_rate` does.

        Args:
            x: Arrays, whose rows are repeated if there are too few; or a function of a batch size
                that returns a `PyDataset` or a tuple of arrays of that size.
            y: Targets, for arrays. Defaults to `None`.
            sample_weight: Weights of the samples, for arrays. Defaults to `None`.
            min_batch_size: integer. The first size. Defaults to `8`.
            max_batch_size: integer. The largest size. Defaults to `None`: the number of rows of
                arrays, and no limit if `x` is a function.

        Raises:
            InvalidInputError: The data have a fixed batch size, a number is out of range, or the
                model's `steps_per_execution` is not 1.
        """
        search = search_batch_size(
            self._short_training(),
            x,
            y,
            sample_weight,
            min_batch_size=min_batch_size,
            max_batch_size=max_batch_size,
        )
        return self._record("batch_size_search", search)

    def measure_memory(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        *,
        sample_weight: Any = None,
        class_weight: Any = None,
    ) -> MemoryReport:
        """Returns the bytes that a step needs for weights, gradients, optimizer and activations.

        They are counted for the first batch, with the trainer's precision, micro-batches and
        `remat`. No step is run. It restores the model as `find_learning_rate` does.

        Args:
            x: Training data, as `fit` takes them. Defaults to `None`.
            y: Targets, if `x` does not contain them. Defaults to `None`.
            batch_size: integer. Defaults to `None`: 32, if `x` does not come in batches.
            sample_weight: Weights of the samples, for arrays. Defaults to `None`.
            class_weight: dict. Weights by class. Defaults to `None`.

        Raises:
            InvalidInputError: There is no batch, the model has no loss, or it has its own
                `train_step`.
        """
        data = {"x": x, "y": y, "batch_size": batch_size}
        data |= {"sample_weight": sample_weight, "class_weight": class_weight}
        report = measure_memory(self.model, self._plan, self._short_training(), data)
        return self._record("memory", report)

    def profile(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        *,
        sample_weight: Any = None,
        class_weight: Any = None,
    ) -> StepProfile:
        """Returns the time of a step by layers, loss, optimizer, and waiting.

        Two steps warm up and five are measured, by the profiler of the framework. No callbacks are
        called. It restores the model as `find_learning_rate` does. Choose the button of Studio, or
        the command `"profile"` of a run record, to profile a training that runs.

        Args:
            x: Training data, as `fit` takes them. Fewer than seven batches are repeated. Defaults
                to `None`.
            y: Targets, if `x` does not contain them. Defaults to `None`.
            batch_size: integer. Defaults to `None`: 32, if `x` does not come in batches.
            sample_weight: Weights of the samples, for arrays. Defaults to `None`.
            class_weight: dict. Weights by class. Defaults to `None`.

        Raises:
            InvalidInputError: A generator ended before the seventh batch, the model has no loss, or
                its `steps_per_execution` is not 1.
            NotSupportedError: Several processes train together.
        """
        data = {"x": x, "y": y, "batch_size": batch_size}
        data |= {"sample_weight": sample_weight, "class_weight": class_weight}
        self._plan.step.check_model()
        if self._recorder is None:
            name = f"{self.model.name}-{time.strftime('%Y%m%d-%H%M%S')}.profile.json.gz"
            trace_file = Path(tempfile.gettempdir(), name)
        else:
            trace_file = self._recorder.trace_file
        profile = profile_steps(self._plan.profiler, self._short_training(), trace_file, data)
        return self._record("profile", profile)

    def _record(self, name: str, result: _Result) -> _Result:
        """Stores a result as a document if the run is recorded, and returns it."""
        if self._recorder is not None:
            self._recorder.write_document(name, dataclasses.asdict(result))
        return result

    def _short_training(self) -> ShortTraining:
        if self._plan.parallelism.uses_workers:
            raise NotSupportedError(
                "With a parameter server, steps can't be undone. Use a Trainer without a "
                "distributed_strategy for searches and profiles."
            )
        if self.cluster.world_size > 1:
            raise NotSupportedError(
                f"Searches and profiles need a process that trains alone; "
                f"{self.cluster.world_size} processes train together here."
            )
        return ShortTraining(
            self.model, self._session.in_training, needs_targets=self._plan.needs_targets
        )
