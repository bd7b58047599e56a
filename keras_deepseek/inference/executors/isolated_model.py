"""A model in a separate process, so that the server survives a crash or a hang of the model.

A message between the two processes is a JSON header, then the arrays' bytes.
"""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.errors import ReplicaError
from keras_deepseek.inference.executors.executor import Executor
from keras_deepseek.inference.protocols.tensor_bytes import dtype_of, from_bytes, to_bytes

START_SECONDS = 600.0
"""The time limit for a process to load its model. A large model takes minutes."""

_POLL_SECONDS = 0.1

_LENGTH = struct.Struct("<Q")


class IsolatedModel(Executor):
    """Runs a model in a separate process, and restarts the process if it crashes or hangs.

    `source` is the path of a model, as for `open_executor`; or `"package.module:function"`, which
    returns an `Executor`. `batch_timeout` and `start_timeout` are the seconds after which a batch,
    or loading, counts as hung. The process computes with `threads` CPU threads.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        custom_objects_from: Sequence[str | os.PathLike[str]] = (),
        *,
        batch_timeout: float = 60.0,
        start_timeout: float = START_SECONDS,
        threads: int | None = None,
    ) -> None:
        if not isinstance(source, str | os.PathLike):
            raise InvalidInputError(
                f"Received a {type(source).__name__}, which can't be sent to a separate process. "
                "Expected the path of a bundle, a SavedModel, an `.onnx` or a `.keras` file, or "
                "'package.module:function'."
            )
        self._arguments = [str(source), str(threads or ""), *map(str, custom_objects_from)]
        self._batch_timeout = batch_timeout
        self._start_timeout = start_timeout
        self._is_last_start = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        content = self._start()
        if "error" in content:
            self.close()
            is_ours = content["kind"] == InvalidInputError.__name__
            raise InvalidInputError(content["error"] if is_ours else _describe(content))
        self._signature = Signature.from_dict(content["signature"])

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def is_isolated(self) -> bool:
        return True

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Computes a batch in the model's process.

        After a crash or a hang, the next batch starts it anew.
        """
        if self._connection is None:
            self._restart()
        assert self._connection is not None
        try:
            send_message(self._connection, {}, inputs)
            content, outputs = receive_message(self._connection)
        except TimeoutError as error:
            self.close()
            raise ReplicaError(
                f"The model hung: it gave no answer in {self._batch_timeout:g} s. Its process was "
                "ended."
            ) from error
        except (EOFError, OSError) as error:
            code = self._end_process()
            raise ReplicaError(f"The model's process ended with code {code}.") from error
        if content.get("kind") == InvalidInputError.__name__:
            raise InvalidInputError(content["error"])
        if "error" in content:
            raise ReplicaError(_describe(content))
        return outputs

    def prepare_to_close(self) -> None:
        """Limits the start of a model process to `batch_timeout` seconds from its beginning.

        If it does not start in that time, no other is started.
        """
        self._start_timeout = min(self._start_timeout, self._batch_timeout)
        self._is_last_start = True

    def close(self) -> None:
        """Ends the model's process."""
        self._end_process()

    def _end_process(self) -> int | None:
        """Ends the model's process. Returns its exit code, or `None` if it had to be killed."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is None:
            return None
        # Leaving the block closes its standard input, and waits for it.
        with process:
            # A crashed process has its exit code in a moment; an idle one ends by itself.
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.2)
            process.kill()
        return None

    def _restart(self) -> None:
        if self._start_timeout <= 0:
            raise ReplicaError("The model's process did not start, and the model is being closed.")
        has_started = False
        try:
            content = self._start()
            has_started = "error" not in content
        finally:
            if self._is_last_start and not has_started:
                self._start_timeout = 0.0
        if not has_started:
            self.close()
            raise ReplicaError(f"The model can't be loaded again: {_describe(content)}")

    def _start(self) -> dict[str, Any]:
        """Starts a process for the model.

        Returns the first message of the process: the model's signature, or an error.
        """
        ours, theirs = socket.socketpair()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        }
        command = [sys.executable, "-m", "keras_deepseek.inference.executors.model_worker"]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), *self._arguments],
                stdin=subprocess.PIPE,  # Its end tells the process that this one has ended.
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C must reach the server alone, which ends in order.
            )
        self._connection = ours
        try:
            self._await_first_message(ours)
            # The message has begun to come: the time limit of a batch is enough for its rest.
            ours.settimeout(self._batch_timeout)
            content, _ = receive_message(ours)
        except TimeoutError as error:
            self.close()
            raise ReplicaError(
                f"The model's process hung: it had not loaded the model in {error} s. It was ended."
            ) from error
        except (EOFError, OSError) as error:
            code = self._end_process()
            raise ReplicaError(f"The model's process ended with code {code}.") from error
        except BaseException:
            self.close()
            raise
        return content

    def _await_first_message(self, connection: socket.socket) -> None:
        """Waits for the first byte, which stays. A `TimeoutError` has the seconds as its text."""
        began = time.monotonic()
        # It wakes up regularly: `prepare_to_close` may have shortened the time limit.
        connection.settimeout(_POLL_SECONDS)
        while True:
            try:
                connection.recv(1, socket.MSG_PEEK)
            except TimeoutError as error:
                if time.monotonic() - began > self._start_timeout:
                    raise TimeoutError(f"{self._start_timeout:g}") from error
            else:
                return


def _describe(content: dict[str, Any]) -> str:
    return f"{content['kind']}: {content['error']}"


def send_message(
    connection: socket.socket, content: Mapping[str, Any], arrays: Mapping[str, Array] | None = None
) -> None:
    """Sends a message of JSON values and arrays. `content` must not have the key `"arrays"`."""
    whole = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
    data = {name: _bytes_of(array) for name, array in whole.items()}
    described = [
        {
            "name": name,
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "bytes": len(data[name]),
        }
        for name, array in whole.items()
    ]
    header = json.dumps({**content, "arrays": described}).encode()
    connection.sendall(_LENGTH.pack(len(header)) + header)
    for buffer in data.values():
        if buffer:
            connection.sendall(buffer)


def receive_message(connection: socket.socket) -> tuple[dict[str, Any], dict[str, Array]]:
    """Receives the content and the arrays of a message from `send_message`.

    The socket's timeout holds for each part of the message. Raises `EOFError` if the other process
    closed its end.
    """
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
    content = json.loads(bytes(_receive(connection, length)))
    arrays = {}
    for described in content.pop("arrays"):
        name, dtype, shape = described["name"], described["dtype"], described["shape"]
        if dtype == "object":
            strings = _receive(connection, described["bytes"])
            arrays[name] = from_bytes(bytes(strings), dtype_of(dtype), tuple(shape), name)
            continue
        array = np.empty(shape, dtype)
        if array.nbytes:
            _receive_into(connection, _bytes_of(array))
        arrays[name] = array
    return content, arrays


def _bytes_of(array: Array) -> memoryview:
    if array.dtype == object:  # Its memory holds addresses, not strings.
        return memoryview(to_bytes(array))
    view: memoryview = array.reshape(-1).view("uint8").data
    return view


def _receive(connection: socket.socket, length: int) -> bytearray:
    buffer = bytearray(length)
    _receive_into(connection, memoryview(buffer))
    return buffer


def _receive_into(connection: socket.socket, view: memoryview) -> None:
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError("The other process has closed its end.")
        view = view[count:]
