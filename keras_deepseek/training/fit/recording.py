"""The trainer's part of a run record: step figures, arguments, the model, and failures."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import example_inputs
from keras_deepseek.callbacks.run_recorder import RequestProfile, RunLink, RunRecorder
from keras_deepseek.callbacks.step_figures import StepFigures
from keras_deepseek.graph.layer_graph import draw_layers, list_layers

_BATCH_SIZE = 32
_PLAIN = (bool, int, float, str)


@contextmanager
def recording(
    recorders: Sequence[RunRecorder],
    figures: StepFigures | None,
    *,
    arguments: Mapping[str, Any],
    documents: Mapping[str, Callable[[], Any]],
    request_checkpoint: Callable[[], None] | None,
    request_profile: RequestProfile | None,
) -> Iterator[None]:
    """Context manager in which the recorders of a training are linked to its trainer.

    An error that ends the training becomes the reason of its failure in their records.

    `figures` is `None` if no process records the training.
    """
    for recorder in recorders:
        recorder.link = RunLink(
            arguments=arguments,
            documents=documents,
            request_checkpoint=request_checkpoint,
            request_profile=request_profile,
        )
    try:
        queues = [recorder.link.figures for recorder in recorders] or [deque(maxlen=0)]
        with nullcontext() if figures is None else figures.read_by(queues):
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
    return [each for each in callbacks if isinstance(each, RunRecorder)]


def draw_model(model: keras.Model, inputs: Any, batch_size: int | None) -> dict[str, Any]:
    """Returns the document of a model's graph.

    `inputs` are those of a step, or `None` if it is the model's own step, which does not tell them.
    `batch_size` is used where the inputs have a free number of rows, as on TensorFlow.
    """
    if inputs is None:
        inputs = example_inputs(model)
    if inputs is None:
        return list_layers(model, "the shapes of the inputs are not known").as_document()

    def with_rows(tensor: Any) -> keras.KerasTensor:
        rows, *others = tensor.shape
        shape = ((batch_size or _BATCH_SIZE) if rows is None else rows, *others)
        return keras.KerasTensor(shape, keras.backend.standardize_dtype(tensor.dtype))

    return draw_layers(model, keras.tree.map_structure(with_rows, inputs)).as_document()


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that are numbers or texts, or hold only these; no `None`."""
    return {name: value for name, value in arguments.items() if _is_plain(value)}


def optimizer_arguments(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Returns the class of an optimizer, and its learning rate if that is a number."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    found: dict[str, Any] = {"optimizer": type(inner).__name__}
    if isinstance(inner.learning_rate, keras.Variable):
        found["learning_rate"] = float(keras.ops.convert_to_numpy(inner.learning_rate))
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(each) for name, each in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
