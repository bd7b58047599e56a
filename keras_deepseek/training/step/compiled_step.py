"""A training step that a model has while it trains, compiled once for all trainings."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.optimizers import optimized_variables, plain_optimizer
from keras_deepseek.backend.keras_private.trainers import (
    class_overrides_train_step,
    compilation,
    temporary_train_step,
)
from keras_deepseek.callbacks.step_metrics import StepMetrics
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.gradients.optimizer_parts import OptimizerParts
from keras_deepseek.training.step.step_profiler import StepProfiler
from keras_deepseek.training.step.training_step import build_for_step


class CompiledStep:
    """A training step that a model has while it trains. It is compiled once for all trainings.

    Args:
        prepare: Function that is called before the first step of a built model. Its errors are not
            those of a batch. Defaults to a function that does nothing.
        extra_variables: Function that returns the variables that the step assigns beside those of
            the model, its optimizer and its metrics. Defaults to one that returns none.
        is_compilable: boolean. XLA can compile the step, if the model asks for it. Defaults to
            `True`.
        is_eager: boolean. The step is a Python function that no framework can compile. Defaults to
            `False`.
        step_metrics: Takes the metrics of the run record out of the logs that the step returns.
        profiler: The profiler of the steps.
        contexts: Functions that return context managers in which the model trains.
        parts: The parts of the weights that this process updates, if it doesn't update all.
    """

    def __init__(
        self,
        model: keras.Model,
        train_step: Callable[..., Any],
        prepare: Callable[[], Any] = lambda: None,
        extra_variables: Callable[[], Sequence[keras.Variable]] = list,
        *,
        is_compilable: bool = True,
        is_eager: bool = False,
        step_metrics: StepMetrics | None = None,
        profiler: StepProfiler | None = None,
        contexts: Sequence[Callable[[], AbstractContextManager[Any]]] = (),
        parts: OptimizerParts | None = None,
    ) -> None:
        self._model = model
        self._train_step = train_step
        self._prepare = prepare
        self._extra_variables = extra_variables
        self._is_compilable = is_compilable and not is_eager
        self._is_eager = is_eager
        self._step_metrics = step_metrics or StepMetrics()
        self._profiler = profiler or StepProfiler(model)
        self._contexts = contexts
        self._parts = parts
        self._compilation = compilation(model)
        self._compiled_for: Any = None  # Another value has the step compiled again.
        # The function that is compiled: another object for each compilation.
        self._called: Callable[..., Any] = self._run
        self._function: Any = None  # The compiled function, between two trainings.
        self._error: Exception | None = None  # The error of the current training's step.
        self.num_calls = 0
        """The number of calls of the compiled function in this training."""
        self.is_running = False
        """True during a step, and after an error that came from a step."""

    @property
    def steps_per_execution(self) -> int:
        """The number of steps that one call of the compiled function runs."""
        return int(self._model.steps_per_execution)

    @property
    def num_steps(self) -> int:
        """The number of steps of this training so far."""
        return self.num_calls * self.steps_per_execution

    def check_model(self) -> None:
        """Raises an error if this step can't train the model at the moment.

        The model is being trained, was compiled again, or has other trainable weights than its
        optimizer was built for.
        """
        self._check_not_training()
        if compilation(self._model) is not self._compilation:
            raise InvalidInputError(
                f"Model {self._model.name!r} was compiled again after this trainer was made, by "
                "another Trainer or by model.compile. It would train with that optimizer and loss. "
                "Make a new Trainer, or give each Trainer its own model."
            )
        if self._parts is not None:
            self._parts.check_weights(self._model)
        elif self._model.optimizer.built:
            _check_trainable(self._model)

    def _check_not_training(self) -> None:
        current = vars(self._model).get("make_train_function")
        if isinstance(getattr(current, "__self__", None), CompiledStep):
            raise InvalidInputError(
                f"Model {self._model.name!r} is being trained: finish the open loop over `steps`, "
                "or call `close()` of the iterator that `Trainer.steps` returned."
            )

    @contextmanager
    def use(self) -> Iterator[None]:
        """Context manager in which the model trains by this step."""
        self._check_not_training()
        model, compiled = self._model, compilation(self._model)
        model_function = model.train_function
        self._error, self.num_calls, self.is_running = None, 0, False
        backend.current().step.separate_variables(model)
        model.make_train_function = self._make_function
        model.train_function = self._function if self._compiled_for == self._now() else None
        if model.train_function is None:
            # A new function object: for the same one, JAX would go on with its former trace.
            self._called = functools.partial(self._run)
        has_step = class_overrides_train_step(model)
        build = functools.partial(build_for_step, model) if has_step else None
        try:
            with ExitStack() as stack, temporary_train_step(model, self._called, build):
                for make_context in self._contexts:
                    stack.enter_context(make_context())
                yield
            # Keras may have replaced the weights by their averages, in buffers that the next
            # evaluation would give away.
            backend.current().step.separate_variables(model)
        except Exception as error:
            if self._error in (None, error):
                raise
            # Keras's cleanup after an error may fail itself, as with moving averages on JAX.
            raise self._error from None
        finally:
            self._profiler.cancel()
            self._error = None  # It would keep the tensors of the step in memory.
            self._function = model.train_function
            del model.make_train_function
            model.train_function = model_function if compilation(model) is compiled else None

    def _make_function(self, force: bool = False) -> Any:
        """Replaces `keras.Model.make_train_function` while the model trains by this step."""
        model = self._model
        if model.built:  # Otherwise the first step builds it.
            self._prepare()
        if model.train_function is None or force:
            jit_compile, run_eagerly = model.jit_compile, model.run_eagerly
            model.jit_compile = jit_compile and self._is_compilable
            model.run_eagerly = run_eagerly or self._is_eager
            try:
                function = backend.current().step.make_train_function(
                    model, self._extra_variables, force=force
                )
            finally:
                model.jit_compile, model.run_eagerly = jit_compile, run_eagerly
            model.train_function = self._count(function)
            self._compiled_for = self._now()
        return model.train_function

    def _now(self) -> tuple[object, list[int], bool]:
        """Returns a key that differs if the step must be compiled again."""
        model = self._model
        variables = [id(variable) for variable in model.trainable_variables]
        return compilation(model), variables, self._step_metrics.are_wanted

    def _count(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps the compiled function: counts its calls, profiles them, and takes their metrics."""
        step = backend.current().step

        def run(*arguments: Any) -> Any:
            self.is_running = True
            if self._profiler.is_requested:
                self._profiler.before_call()
            if self._step_metrics.are_wanted:
                arguments = self._step_metrics.begin(arguments)
            try:
                with step.fuse_recurrent_layers(self._model):
                    result = function(*arguments)
            except Exception as error:
                self.is_running = not step.is_end_of_data(error)
                raise
            self.is_running = False
            self.num_calls += 1
            # On JAX, the state of the training comes with the logs.
            logs = result[0] if isinstance(result, tuple) else result
            if self._step_metrics.are_wanted:
                self._step_metrics.end(logs)
            if self._profiler.is_requested:
                self._profiler.after_call(logs)
            return result

        return run

    def _run(self, *arguments: Any) -> Any:
        try:
            return self._train_step(*arguments)
        except StopIteration as error:  # Keras would take it for the end of the data.
            self._error = RuntimeError(
                "train_step raised StopIteration, which Keras takes for the end of the data. Raise "
                "another error."
            )
            raise self._error from error
        except Exception as error:
            self._error = error
            raise


def _check_trainable(model: keras.Model) -> None:
    """Raises an error if weights were frozen or unfrozen in a way the optimizer can't handle."""
    optimized, trainable = optimized_variables(model.optimizer), model.trainable_variables
    optimizer = plain_optimizer(model.optimizer)
    if optimized is None:
        return
    ids = {id(variable) for variable in optimized}
    new = [variable.path for variable in trainable if id(variable) not in ids]
    if new:
        what = f"{new[0]!r} became trainable after the optimizer was built without it"
    elif optimizer.use_ema and len(trainable) < len(optimized):
        what = "Weights were frozen after the optimizer was built with use_ema for all of them"
    else:
        return
    raise InvalidInputError(f"{what}. Make a new Trainer, with a new optimizer (optimizer=...).")
