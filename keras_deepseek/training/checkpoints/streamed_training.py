"""Training on a stream of batches that knows its position, in place of Keras's data reading."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import GeneratorType
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.data.positioned_data import PositionedData
from keras_deepseek.backend.keras_private.callbacks import finish_callbacks
from keras_deepseek.backend.processes.processes import Processes
from keras_deepseek.errors import NotSupportedError
from keras_deepseek.training.checkpoints.streamed_callbacks import StreamedCallbacks
from keras_deepseek.training.data.position_data import position_data
from keras_deepseek.training.step.build_for_step import build_for_step


def feed(
    model: keras.Model, arguments: dict[str, Any], processes: Processes, *, needs_stream: bool
) -> AbstractContextManager[dict[str, Any]]:
    """Returns a context manager that yields the arguments for `model.fit`.

    The data become a stream if that is required, if it is faster than Keras's own way, or if they
    are a generator: Keras draws its first batches in advance, and when it ends goes on with those
    few for ever.

    More than one process requires a stream.

    Raises:
        NotSupportedError: The data must be a stream, and can't be one.
    """
    needs_stream = needs_stream or processes.world_size > 1
    x = arguments["x"]
    is_better = isinstance(x, GeneratorType) or backend.current().step.prefers_own_feed(x)
    if not (needs_stream or is_better):
        return nullcontext(arguments)
    try:
        seed = processes.broadcast(backend.current().step.draw_seed())
        options, data = position_data(arguments, seed, row_share(processes))
    except NotSupportedError:
        if needs_stream:
            raise
        return nullcontext(arguments)
    return streamed_training(model, options, data, processes)


def row_share(processes: Processes) -> tuple[int, int]:
    """Returns `(first, step)`, with which a process trains on rows `first::step` of each batch.

    Where one program runs over the devices of all processes, each of them gives all rows.
    """
    return (0, 1) if processes.is_one_program else (processes.rank, processes.world_size)


@contextmanager
def streamed_training(
    model: keras.Model,
    options: dict[str, Any],
    data: PositionedData,
    processes: Processes,
    position: dict[str, Any] | None = None,
    make_callbacks: Callable[..., StreamedCallbacks] = StreamedCallbacks,
) -> Iterator[dict[str, Any]]:
    """Context manager that opens the data, builds the model, and yields arguments of `fit`.

    `options` and `data`, which is not open yet, are what `position_data` returned. `position` is
    where to continue in the data.
    """
    if position is None:
        data.open()
    else:
        data.go_to(position)
    build_for_step(model, data.symbolic_batch())
    data.leave_open(getattr(model, "inputs", None) or [])
    processes.broadcast_variables([*model.variables, *model.optimizer.variables])
    callbacks = make_callbacks(
        options["callbacks"],
        model=model,
        data=data,
        epochs=options["epochs"],
        verbose=options["verbose"],
        processes=processes,
    )
    try:
        yield {**options, "callbacks": callbacks}
    except Exception as error:
        if data.stream.error in (None, error):
            raise
        raise data.stream.error from error
    finally:
        data.stream.close()
        with suppress(Exception):  # The error that ended the training comes first.
            finish_callbacks(callbacks)
