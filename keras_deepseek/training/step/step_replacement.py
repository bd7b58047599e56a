"""Temporarily replaces a model's training step."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.trainers import (
    class_overrides_train_step,
    compilation,
    temporary_train_step,
)
from keras_deepseek.callbacks.step_metrics import StepMetrics
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.build_for_step import build_for_step
from keras_deepseek.training.step.step_profiler import StepProfiler


class StepReplacement:
    """Replaces the training step of a model while it trains. It is compiled once for all trainings.

    Args:
        prepare: Function that is called before the first step of a built model. Its errors are not
            those of a batch. Defaults to a function that does nothing.
        extra_variables: Function that returns the variables that the step assigns beside those of
            the model, its optimizer and its metrics. Defaults to one that returns none.
        is_compilable: boolean. XLA can compile the step, if the model asks for it. Defaults to
            `True`.
        is_eager: boolean. The step is a Python function that no framework can compile. Defaults to
            `False`.
        step_metrics: The hand-over of the metrics that the step returns among its logs.
        profiler: The profiler of the steps.
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
    ) -> None:
        self._model = model
        self._train_step = train_step
        self._prepare = prepare
        self._extra_variables = extra_variables
        self._is_compilable = is_compilable and not is_eager
        self._is_eager = is_eager
        self._step_metrics = step_metrics or StepMetrics()
        self._profiler = profiler or StepProfiler(model)
        self._compiled_for: Any = None
        self._called: Callable[..., Any] = self._run
        self._function: Any = None
        self._error: Exception | None = None
        self.num_calls = 0
        """The number of calls of the compiled function in this training."""
        self.is_running = False
        """True during a step, and after an error that came from a step."""

    def check_not_training(self) -> None:
        """Raises an error if a trainer is training the model at the moment."""
        current = vars(self._model).get("make_train_function")
        if isinstance(getattr(current, "__self__", None), StepReplacement):
            raise InvalidInputError(
                f"Model {self._model.name!r} is being trained: finish the open loop over `steps`, "
                "or call `close()` of the iterator that `Trainer.steps` returned."
            )

    @contextmanager
    def use(self) -> Iterator[None]:
        """Context manager in which the model trains by this step."""
        self.check_not_training()
        model, compiled = self._model, compilation(self._model)
        own_function, self._error, self.num_calls = model.train_function, None, 0
        self.is_running = False
        backend.current().step.separate_variables(model)
        model.make_train_function = self._make_function
        model.train_function = self._function if self._compiled_for == self._now() else None
        if model.train_function is None:  # JAX would go on with what it traced for the same one.
            self._called = functools.partial(self._run)
        try:
            build = (
                functools.partial(build_for_step, model)
                if class_overrides_train_step(model)
                else None
            )
            with temporary_train_step(model, self._called, build):
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
            model.train_function = own_function if compilation(model) is compiled else None

    def _make_function(self, force: bool = False) -> Any:
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
        def run(*arguments: Any) -> Any:
            self.is_running = True
            self._profiler.before_call()
            arguments = self._step_metrics.begin(arguments)
            try:
                result = function(*arguments)
            except Exception as error:
                self.is_running = not backend.current().step.is_end_of_data(error)
                raise
            self.is_running = False
            self.num_calls += 1
            # On JAX, the state of the training comes with the logs.
            logs = result[0] if isinstance(result, tuple) else result
            self._step_metrics.end(logs)
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
