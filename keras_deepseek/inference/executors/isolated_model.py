"""A model in a process of its own: what it does to that process, the server outlives."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.arguments import check_seconds
from keras_deepseek.inference.errors import ReplicaError
from keras_deepseek.inference.executors.tensor_stream import receive_message, send_message

START_SECONDS = 600.0
"""Seconds after which a process that loads its model counts as hung: to load a large one takes
minutes."""

_LOOK_SECONDS = 0.1


class IsolatedModel:
    """Runs a model in a process that is started anew where it crashes or hangs.

    Args:
        source: The path of a model, as `open_executor` takes it; or `"package.module:function"`, a
            function without arguments that returns an `Executor`.
        custom_objects_from: sequence of module names or `.py` files. Defaults to `()`.
        batch_timeout: float. Seconds after which a batch counts as hung. Defaults to `60.0`.
        start_timeout: float. Seconds after which a process that loads the model counts as hung.
            Defaults to `600.0`.

    Raises:
        InvalidInputError: The source can't be opened, or is a model that lives in this process.
        ReplicaError: The process ended, or hung, while it loaded the model.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        custom_objects_from: Sequence[str | os.PathLike[str]] = (),
        *,
        batch_timeout: float = 60.0,
        start_timeout: float = START_SECONDS,
    ) -> None:
        if not isinstance(source, str | os.PathLike):
            raise InvalidInputError(
                f"A {type(source).__name__} can't go to a process of its own. Expected the path of "
                "a bundle, a SavedModel, an `.onnx` or a `.keras` file, or "
                "'package.module:function'."
            )
        check_seconds("batch_timeout", batch_timeout)
        check_seconds("start_timeout", start_timeout)
        self._arguments = [str(source), *map(str, custom_objects_from)]
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
        """The names, shapes and dtypes of the inputs and outputs."""
        return self._signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Returns arrays by output name.

        Args:
            inputs: dict of arrays by input name, as the signature has them.

        Raises:
            ReplicaError: The model failed; or its process crashed or hung, or did not start, and is
                started anew by the next batch.
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
            code = self.close()
            raise ReplicaError(f"The model's process ended with code {code}.") from error
        if "error" in content:
            raise ReplicaError(_describe(content))
        return outputs

    def hurry(self) -> None:
        """Says, from any thread, that soon `close` follows, when what was accepted is answered.

        A process that is starting has no more than `batch_timeout` for it then, since it began; and
        one that does not come is the last.
        """
        self._start_timeout = min(self._start_timeout, self._batch_timeout)
        self._is_last_start = True

    def close(self) -> int | None:
        """Ends the process; returns the code that it ended with by itself, or `None`."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is None:
            return None
        # Leaving the block closes its standard input, and waits for it.
        with process:
            # One that crashed has its code in a moment; one that was idle ends by itself.
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.2)
            process.kill()
        return None

    def _restart(self) -> None:
        if self._start_timeout <= 0:
            raise ReplicaError("The model's process did not start, and the model is being closed.")
        has_come = False
        try:
            content = self._start()
            has_come = "error" not in content
        finally:
            if self._is_last_start and not has_come:
                self._start_timeout = 0.0
        if not has_come:
            self.close()
            raise ReplicaError(f"The model can't be loaded again: {_describe(content)}")

    def _start(self) -> dict[str, Any]:
        """Returns what a new process says first: its model's signature, or an error."""
        ours, theirs = socket.socketpair()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        }
        command = [sys.executable, "-m", "keras_deepseek.inference.executors.model_worker"]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), *self._arguments],
                stdin=subprocess.PIPE,  # By its end the process knows of this one's.
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is for the server, which finishes its batches.
            )
        self._connection = ours
        try:
            self._await_first_message(ours)
            ours.settimeout(self._batch_timeout)
            content, _ = receive_message(ours)
        except TimeoutError as error:
            self.close()
            raise ReplicaError(
                f"The model's process hung: it had not loaded the model in {error} s. It was ended."
            ) from error
        except (EOFError, OSError) as error:
            code = self.close()
            raise ReplicaError(f"The model's process ended with code {code}.") from error
        except BaseException:
            self.close()
            raise
        return content

    def _await_first_message(self, connection: socket.socket) -> None:
        began = time.monotonic()
        # It looks up now and then: `hurry` may have made the time shorter.
        connection.settimeout(_LOOK_SECONDS)
        while True:
            try:
                connection.recv(1, socket.MSG_PEEK)
            except TimeoutError as error:
                if time.monotonic() - began > self._start_timeout:
                    raise TimeoutError(f"{self._start_timeout:g}") from error
            else:
                return


def _describe(content: dict[str, Any]) -> str:
    """Returns what a process says of an error."""
    return f"{content['kind']}: {content['error']}"
