"""The process that an `IsolatedModel` runs its model in: `python -m ... FD SOURCE [OBJECTS...]`."""

import importlib
import os
import socket
import sys
import threading
from collections.abc import Sequence

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.executors.executor import Executor
from keras_deepseek.inference.executors.open_executor import open_executor
from keras_deepseek.inference.executors.tensor_stream import receive_message, send_message


def open_source(source: str, custom_objects_from: Sequence[str]) -> Executor:
    """Returns what computes a model.

    Args:
        source: string. The path of a model, or `"package.module:function"`, which returns it.
        custom_objects_from: sequence of strings, as in `open_executor`.

    Raises:
        InvalidInputError: The source can't be opened, or the function returns something else.
    """
    module, _, function = source.partition(":")
    if function and not os.path.exists(source):  # noqa: PTH110 - it may be no path at all.
        executor = getattr(importlib.import_module(module), function)()
        if not isinstance(executor, Executor) or isinstance(executor, type):
            raise InvalidInputError(
                f"{source!r} returned a {type(executor).__name__}. Expected an `Executor`: an "
                "object with a `signature` and a method `run`."
            )
        return executor
    return open_executor(source, custom_objects_from)


def work(connection: socket.socket, source: str, custom_objects_from: Sequence[str]) -> None:
    """Opens a model, says its signature, and runs what comes until the other end is closed.

    Args:
        connection: `socket.socket` to the process that serves.
        source: As in `open_source`.
        custom_objects_from: As in `open_source`.
    """
    try:
        executor = open_source(source, custom_objects_from)
        signature = executor.signature.to_dict()
    except BaseException as error:  # noqa: BLE001 - whatever it was, the other process tells it.
        send_message(connection, {"error": str(error), "kind": type(error).__name__})
        return
    send_message(connection, {"signature": signature})
    while True:
        try:
            _, inputs = receive_message(connection)
        except EOFError:
            return
        try:
            outputs = executor.run(inputs)
        except Exception as error:  # noqa: BLE001
            send_message(connection, {"error": str(error), "kind": type(error).__name__})
        else:
            send_message(connection, {}, outputs)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # Until the process that serves closes it, or ends.
    os._exit(1)


def main() -> None:
    """Runs the worker."""
    descriptor, source, *custom_objects_from = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with socket.socket(fileno=int(descriptor)) as connection:
        work(connection, source, custom_objects_from)
    os._exit(0)  # A thread of a framework's must not keep it.


if __name__ == "__main__":
    main()
