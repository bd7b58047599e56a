"""The trainer's part of a run record: step metrics, arguments, the model, and failures."""

import functools
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import example_inputs
from keras_deepseek.backend.keras_private.optimizers import plain_optimizer
from keras_deepseek.callbacks.run_recorder import RequestProfile, RunLink, RunRecorder
from keras_deepseek.callbacks.step_metrics import StepMetrics
from keras_deepseek.graph.layer_graph import draw_layers, list_layers
from keras_deepseek.graph.optimized_model import OptimizedModel
from keras_deepseek.graph.passes import PASSES

_BATCH_SIZE = 32
_PLAIN = (bool, int, float, str)


@contextmanager
def recording(
    recorders: Sequence[RunRecorder],
    step_metrics: StepMetrics,
    *,
    arguments: Mapping[str, Any],
    documents: Mapping[str, Callable[[], Any]],
    request_checkpoint: Callable[[], None] | None,
    request_profile: RequestProfile | None,
) -> Iterator[None]:
    """Context manager in which the recorders of a training are linked to its trainer.

    An error that ends the training becomes the reason of its failure in their records.
    `recorders` is empty if only another process records the training.
    """
    for recorder in recorders:
        recorder.link = RunLink(
            arguments=arguments,
            documents=documents,
            request_checkpoint=request_checkpoint,
            request_profile=request_profile,
        )
    try:
        # If only another process records, this step computes the metrics too: the queue drops them.
        queues = [recorder.link.step_metrics for recorder in recorders] or [deque(maxlen=0)]
        with step_metrics.read_by(queues):
            yield
    except BaseException as error:
        for recorder in recorders:
            recorder.report_failure(error)
        raise
    finally:
        for recorder in recorders:
            recorder.link = RunLink()


def find_recorders(callbacks: Sequence[keras.callbacks.Callback]) -> list[RunRecorder]:
    """Returns the callbacks that record the run."""
    return [callback for callback in callbacks if isinstance(callback, RunRecorder)]


def graph_documents(
    model: keras.Model, step_metrics: StepMetrics, batch_size: int | None, *, optimize_graph: bool
) -> dict[str, Callable[[], Any]]:
    """Returns functions that draw the model, and the graph of its step if that is optimized.

    They are called after the first step. `batch_size` is the number of rows of inputs that the step
    takes with any number, as on TensorFlow.
    """
    passes: Collection[str] | None = PASSES if optimize_graph else None
    if isinstance(model, OptimizedModel):
        passes = model.passes if model.mode == "train" else None
        model = model.original

    def with_rows(tensor: Any) -> keras.KerasTensor:
        rows, *dims = tensor.shape
        shape = ((batch_size or _BATCH_SIZE) if rows is None else rows, *dims)
        return keras.KerasTensor(shape, keras.backend.standardize_dtype(tensor.dtype))

    def draw(passes: Collection[str] | None = None) -> dict[str, Any]:
        # A model's own step does not tell its inputs.
        inputs = example_inputs(model) if step_metrics.inputs is None else step_metrics.inputs
        if inputs is None:
            return list_layers(model, "the shapes of the inputs are not known").as_document()
        input_specs = keras.tree.map_structure(with_rows, inputs)
        return draw_layers(model, input_specs, passes=passes).as_document()

    if passes is None:
        return {"model_graph": draw}
    return {"model_graph": draw, "model_graph_optimized": functools.partial(draw, passes)}


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that are numbers or texts, or hold only these; no `None`."""
    return {name: value for name, value in arguments.items() if _is_plain(value)}


def optimizer_arguments(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Returns the class of an optimizer, and its learning rate if that is a number."""
    inner = plain_optimizer(optimizer)
    arguments: dict[str, Any] = {"optimizer": type(inner).__name__}
    if isinstance(inner.learning_rate, keras.Variable):
        arguments["learning_rate"] = float(keras.ops.convert_to_numpy(inner.learning_rate))
    return arguments


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(nested) for name, nested in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
