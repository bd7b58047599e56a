"""A training on a stream of batches: with checkpoints, by steps, or where that is faster."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import GeneratorType
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.data.positioned_data import PositionedData
from keras_deepseek.backend.processes.processes import Processes
from keras_deepseek.errors import NotSupportedError
from keras_deepseek.training.checkpoints.streamed_callbacks import StreamedCallbacks
from keras_deepseek.training.data.position_data import position_data
from keras_deepseek.training.step.build_for_step import build_for_step


def feed(
    model: keras.Model, arguments: dict[str, Any], processes: Processes, *, needs_stream: bool
) -> AbstractContextManager[dict[str, Any]]:
    """Returns a context that yields the arguments for `model.fit`, whose data come as is best.

    Args:
        model: `keras.Model`, compiled.
        arguments: dict. What a user gave to `fit`.
        processes: `Processes` that train together: several need a stream.
        needs_stream: boolean. Whether the data must come by a stream. Else they do where that is
            faster than Keras's own way, and their position can be known; and a generator does,
            which Keras would look into first, to train on what it saw for ever where it has ended.

    Raises:
        NotSupportedError: The data must come by a stream, and can't.
    """
    needs_stream = needs_stream or processes.world_size > 1
    x = arguments["x"]
    is_better = isinstance(x, GeneratorType) or backend.current().step.prefers_own_feed(x)
    if not (needs_stream or is_better):
        return nullcontext(arguments)
    try:
        seed = processes.broadcast(backend.current().step.draw_seed())
        options, data = position_data(arguments, seed, own_share(processes))
    except NotSupportedError:
        if needs_stream:
            raise
        return nullcontext(arguments)
    return streamed_training(model, options, data, processes)


def own_share(processes: Processes) -> tuple[int, int]:
    """Returns which rows of each batch a process takes: the first, and of how many it takes one.

    Args:
        processes: `Processes`. Where one program runs over the devices of all, each has all rows.
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
    """Yields the arguments for `model.fit` to train on a stream, of which each epoch begins anew.

    Args:
        model: `keras.Model`, compiled.
        options: dict. The arguments, as `position_data` returns them.
        data: `PositionedData` among them, fresh.
        processes: `Processes` that train together.
        position: dict. Where the data go on from. Defaults to `None`, their beginning.
        make_callbacks: What makes the `StreamedCallbacks`, of their arguments.

    Raises:
        InvalidInputError: There is no batch, or the data are not those of the position.
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
