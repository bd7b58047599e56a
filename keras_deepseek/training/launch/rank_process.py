"""A process of a job, with its process group and its output pipes."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from keras_deepseek.training.launch.output import LinePrefixer, Output
from keras_deepseek.training.launch.watchdog import Watchdog

_CHUNK = 65536
_MOST_LEFT = 1 << 20
"""Bytes. A pipe holds no more, so reading ends even if a process goes on writing."""


class RankProcess:
    """A process in its own session, so that it and its children are one process group.

    `prefix` is written before each of its lines.
    """

    def __init__(
        self,
        rank: int,
        prefix: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        output: Output,
        watchdog: Watchdog,
    ) -> None:
        self.rank = rank
        self._watchdog = watchdog
        guard = Path(__file__).with_name("die_with_parent.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(guard), str(os.getpid()), *command],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        watchdog.add(self._process.pid)
        self._streams = [self._process.stdout, self._process.stderr]
        lines_out = LinePrefixer(prefix.encode(), output.write_out)
        self._errors = LinePrefixer(prefix.encode(), output.write_error)
        self.outputs: dict[int, LinePrefixer] = {}
        for stream, lines in zip(self._streams, (lines_out, self._errors), strict=True):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self.outputs[stream.fileno()] = lines

    @property
    def last_errors(self) -> list[str]:
        """The newest lines that the process wrote to stderr."""
        return self._errors.last_lines

    def read(self, descriptor: int) -> int | None:
        """Forwards the bytes that wait in one of the process's output pipes.

        Returns their number: 0 if the pipe is closed, `None` if it is empty.
        """
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return None
        self.outputs[descriptor].feed(data)
        return len(data)

    def send(self, number: int) -> None:
        """Sends a signal to the process only; the script ends its own children."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kills the process and its whole group."""
        # macOS refuses it if all processes of the group have ended.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def has_ended(self) -> bool:
        """Returns True if the process has ended. Its process ID is not reused before `collect`."""
        if not hasattr(os, "waitid"):  # Python on macOS, up to 3.12.
            return self._process.poll() is not None
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, options) is not None

    def collect(self) -> int:
        """Kills the rest of the process group, forwards the last output, and waits for the process.

        Returns the exit code, or the negative number of a signal.
        """
        self.kill()
        for descriptor, lines in self.outputs.items():
            num_read = 0
            while num_read < _MOST_LEFT and (count := self.read(descriptor)):
                num_read += count
            lines.close()
        for stream in self._streams:
            assert stream is not None
            stream.close()
        status = self._process.wait()
        self._watchdog.remove(self._process.pid)
        return status
