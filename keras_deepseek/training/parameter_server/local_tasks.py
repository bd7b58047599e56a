"""TensorFlow workers and servers on this machine, as child processes of the chief."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path

from keras_deepseek.artifacts.network_address import join_address
from keras_deepseek.errors import PeerLostError
from keras_deepseek.training.launch import die_with_parent
from keras_deepseek.training.launch.plan import LOOPBACK, find_free_ports

_MOST_DEATHS = 3
"""Workers may end so often without an update in between; then the training ends."""

_WORKER, _SERVER = "worker", "ps"
_PROGRAM = ["-m", "keras_deepseek.training.parameter_server.task_process"]


class LocalTasks:
    """Starts worker and server processes on this machine, and restarts workers that end.

    The processes end with this one, even if it is killed. All of them have `timeout` seconds to
    start.
    """

    def __init__(self, num_workers: int, num_servers: int, timeout: float) -> None:
        listed = [
            join_address(LOOPBACK, port) for port in find_free_ports(1 + num_workers + num_servers)
        ]
        self.addresses = {
            "chief": listed[:1],
            _WORKER: listed[1 : 1 + num_workers],
            _SERVER: listed[1 + num_workers :],
        }
        self._num_deaths = 0
        self._processes: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
        tasks = [(kind, i) for kind in (_SERVER, _WORKER) for i in range(len(self.addresses[kind]))]
        with contextlib.ExitStack() as stack:
            stack.callback(self.end)
            ready = {task: self._start(task) for task in tasks}
            self._wait(ready, timeout)
            stack.pop_all()

    def look_after(self, ends_workers: bool = False) -> None:
        """Restarts worker processes that have ended.

        With `ends_workers`, all workers are killed first, because none answers. Raises a
        `PeerLostError` if a server has ended, or workers end again and again.
        """
        for task, process in list(self._processes.items()):
            kind, index = task
            if ends_workers and kind == _WORKER:
                process.kill()
                process.wait()
            if process.poll() is None:
                continue
            if kind == _SERVER:
                raise PeerLostError(
                    f"Parameter server {index} has ended with exit code {process.returncode}, and "
                    "its variables are lost. Go on from a checkpoint: fit(..., resume=True)."
                )
            self._num_deaths += 1
            if self._num_deaths > _MOST_DEATHS:
                raise PeerLostError(
                    f"Workers have ended {self._num_deaths} times without an update in between; "
                    f"worker {index} with exit code {process.returncode}. The first error in their "
                    "logs says why. Memory may be too small for a batch."
                )
            os.close(self._start(task))

    def note_update(self) -> None:
        """Resets the count of workers that died, since an update of the weights was made."""
        self._num_deaths = 0

    def process_ids(self, kind: str) -> list[int]:
        """Returns the process IDs of all tasks of one type, `"worker"` or `"ps"`."""
        tasks = sorted(self._processes.items())
        return [process.pid for (task_kind, _), process in tasks if task_kind == kind]

    def end(self) -> None:
        """Kills all worker and server processes."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def _start(self, task: tuple[str, int]) -> int:
        """Starts a process; returns the descriptor that gets a byte once the process listens."""
        kind, index = task
        reading, writing = os.pipe()
        command = [
            *(sys.executable, "-I", "-S", str(Path(die_with_parent.__file__)), str(os.getpid())),
            *(sys.executable, *_PROGRAM),
            *(json.dumps(self.addresses), kind, str(index), str(writing)),
        ]
        environ = {**os.environ, "KERAS_BACKEND": "tensorflow"}
        environ.pop("TF_CONFIG", None)
        if kind == _SERVER:  # It updates on the CPU, and leaves the GPUs' memory to the workers.
            environ["CUDA_VISIBLE_DEVICES"] = "-1"
        try:
            self._processes[task] = subprocess.Popen(
                command, env=environ, stdin=subprocess.DEVNULL, pass_fds=[writing]
            )
        finally:
            os.close(writing)
        return reading

    def _wait(self, ready: dict[tuple[str, int], int], timeout: float) -> None:
        """Waits until all processes listen; `ready` has the descriptors that `_start` returned."""
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
            for task, descriptor in ready.items():
                stack.callback(os.close, descriptor)
                selector.register(descriptor, selectors.EVENT_READ, task)
            while selector.get_map():
                seconds = deadline - time.monotonic()
                ready_keys = selector.select(seconds) if seconds > 0 else []
                if not ready_keys:
                    names = ", ".join(
                        " ".join(map(str, key.data)) for key in selector.get_map().values()
                    )
                    raise PeerLostError(f"Waited {timeout:g} s for {names} to start.")
                for key, _ in ready_keys:
                    selector.unregister(key.fileobj)
                    if not os.read(key.fd, 1):
                        kind, index = key.data
                        status = self._processes[key.data].wait()
                        raise PeerLostError(
                            f"{kind} {index} has ended with exit code {status} during its start. "
                            "The first error in the log says why."
                        )
