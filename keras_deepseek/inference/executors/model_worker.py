"""The process of an `IsolatedModel`: `python -m ... FD SOURCE THREADS [OBJECTS...]`."""

import importlib
import os
import socket
import sys
import threading
from collections.abc import Sequence

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.executors.executor import Executor, as_executor, check_outputs
from keras_deepseek.inference.executors.isolated_model import receive_message, send_message
from keras_deepseek.inference.executors.open_executor import open_executor


def open_source(
    source: str, custom_objects_from: Sequence[str], threads: int | None = None
) -> Executor:
    """Returns the executor of a path, or the result of a function `"package.module:name"`."""
    module, _, function = source.partition(":")
    if function and not os.path.exists(source):  # noqa: PTH110 - it may be no valid path.
        returned = getattr(importlib.import_module(module), function)()
        executor = as_executor(returned)
        if executor is None:
            raise InvalidInputError(
                f"{source!r} returned a {type(returned).__name__}. Expected an `Executor`: an "
                "object with a `signature` and a method `run`."
            )
        return executor
    return open_executor(source, custom_objects_from, threads)


def work(
    connection: socket.socket,
    source: str,
    custom_objects_from: Sequence[str],
    threads: int | None = None,
) -> None:
    """Opens a model, sends its signature, and runs batches until the server disconnects."""
    try:
        executor = open_source(source, custom_objects_from, threads)
        signature = executor.signature.to_dict()
    except BaseException as error:  # noqa: BLE001 - the other process reports it.
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
            check_outputs(outputs, executor.signature)
        except Exception as error:  # noqa: BLE001
            send_message(connection, {"error": str(error), "kind": type(error).__name__})
        else:
            send_message(connection, {}, outputs)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # Returns when the serving process closes it, or ends.
    os._exit(1)


def main() -> None:
    """Runs the process of an `IsolatedModel`."""
    descriptor, source, threads, *custom_objects_from = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with socket.socket(fileno=int(descriptor)) as connection:
        work(connection, source, custom_objects_from, int(threads) if threads else None)
    os._exit(0)  # A framework's thread must not keep the process alive.


if __name__ == "__main__":
    main()
