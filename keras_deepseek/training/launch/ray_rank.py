"""A program that runs one rank on a Ray cluster: `ADDRESS JOB OPTIONS... SCRIPT...`.

Ray chooses the node and carries the messages. On that node, an actor launches the rank as the only
one of a node, so environment, signals and exit are those of every launch. This process represents
the rank on the launcher's machine: it forwards its output and the signals, and ends with its exit
code. If this process is killed, Ray ends the actor and so the rank.

It runs as a script: Ray sends the actor's class by value, and no node loads Keras for it.
"""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

_NAMESPACE = "keras-deepseek launch"
_CHUNK = 65536
_MOST_CHUNKS = 256
"""A rank that writes faster than its output is read has to wait."""
_LONGEST_WAIT = 0.5
"""Seconds that a call for output waits if there is none."""
_PASSED_ON = ("KERAS_", "OMP_NUM_THREADS")
"""The prefixes of variables that a rank gets from here. Ray itself sets OMP_NUM_THREADS to 1."""
_JOIN_TIMEOUT = "KERAS_DEEPSEEK_JOIN_TIMEOUT"
_TOKEN_HINT = (
    "If `ray start` printed that token authentication is enabled, set RAY_AUTH_MODE=token and the "
    "cluster's token (RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH) here too."
)


class RemoteRank:
    """The Ray actor that runs one rank, on the node that Ray has chosen."""

    def __init__(self) -> None:
        import ray

        node_id = ray.get_runtime_context().get_node_id()
        host = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == node_id)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
            listener.bind((host, 0))
            port = listener.getsockname()[1]
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._output: queue.Queue[tuple[int, bytes]] = queue.Queue(_MOST_CHUNKS)
        self._readers: list[threading.Thread] = []
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """Returns `HOST:PORT` of this node with a free port, at which rank 0 can listen."""
        return self._address

    def start(self, launch: list[str], environ: dict[str, str], folder: str) -> None:
        """Starts the rank by the arguments of `keras-deepseek launch`.

        `environ` is added to the node's environment. `folder` becomes the working directory, if the
        node has it.
        """
        import keras_deepseek

        launcher = Path(keras_deepseek.__file__).parent / "training" / "launch"
        guard = [sys.executable, "-I", "-S", str(launcher / "die_with_parent.py"), str(os.getpid())]
        self._process = subprocess.Popen(
            [*guard, sys.executable, "-m", "keras_deepseek.cli", "launch", *launch],
            env={**os.environ, **environ},
            cwd=folder if Path(folder).is_dir() else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        for number, stream in ((1, self._process.stdout), (2, self._process.stderr)):
            reader = threading.Thread(target=self._read_all, args=[number, stream], daemon=True)
            reader.start()
            self._readers.append(reader)

    def read(self) -> tuple[list[tuple[int, bytes]], int | None]:
        """Returns the rank's new output by stream, and its exit code.

        The exit code is `None` while the rank runs, and until all of its output was returned.
        """
        assert self._process is not None
        chunks = []
        with contextlib.suppress(queue.Empty):
            chunks.append(self._output.get(timeout=_LONGEST_WAIT))
            while True:
                chunks.append(self._output.get_nowait())
        has_no_more = not chunks and not any(reader.is_alive() for reader in self._readers)
        # The queue last: a reader may have put output into it before it ended.
        if has_no_more and self._output.empty():
            return chunks, self._process.wait()
        return chunks, None

    def send(self, number: int) -> None:
        """Sends a signal to the launcher of the rank."""
        assert self._process is not None
        self._process.send_signal(number)

    def _read_all(self, number: int, stream: BinaryIO) -> None:
        while data := stream.read(_CHUNK):
            self._output.put((number, data))


def main(arguments: Sequence[str]) -> int:
    """Runs one rank on a node of the cluster, waits for its end, and returns its exit code.

    The arguments are the address of the cluster, the name of the job, and the options and script of
    `keras-deepseek launch` that are the same for all ranks. The code is 1 if Ray can't run the
    rank.
    """
    address, job, *launch = arguments
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    actor: Any = None  # The actor of a rank that runs.

    def pass_on(number: int) -> None:
        """Sends a signal to the rank; ends this process if the rank does not run yet."""
        if actor is None:
            sys.exit(128 + number)
        actor.send.remote(number)

    def handle_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: pass_on(number))

    handle_signals()
    import ray

    try:
        ray.init(address, namespace=_NAMESPACE, logging_level="ERROR", log_to_driver=False)
        handle_signals()  # Ray has replaced the handlers.
        placed = _place(ray, job, rank, world_size)
        timeout = float(os.environ.get(_JOIN_TIMEOUT, "300"))
        coordinator = _find_coordinator(ray, job, placed, rank, timeout)
        node = ["--nproc", "1", "--nnodes", str(world_size), "--rank", str(rank)]
        passed_on = {name: os.environ[name] for name in os.environ if name.startswith(_PASSED_ON)}
        started = placed.start.remote(
            [*node, "--coordinator", coordinator, *launch], passed_on, str(Path.cwd())
        )
        ray.get(started)
        actor = placed
        return _forward_output(ray, actor)
    except (_NotPlacedError, ConnectionError, ValueError, ray.exceptions.RayError) as error:
        reason = f"{str(error).strip()} {_TOKEN_HINT if _may_lack_token() else ''}"
        print(f"[{rank}] Ray could not run this rank: {reason.strip()}", file=sys.stderr)
        return 1


def _may_lack_token() -> bool:
    """Returns True if this process has no token for a Ray cluster that may require one.

    Newer versions of Ray do so by default.
    """
    return os.environ.get("RAY_AUTH_MODE", "disabled") == "disabled"


class _NotPlacedError(Exception):
    pass


def _place(ray: Any, job: str, rank: int, world_size: int) -> Any:
    """Creates the actor of a rank, `RemoteRank`, on a node that Ray chooses, and returns it."""
    resources = ray.cluster_resources()
    if resources.get("CPU", 0) < world_size:
        raise _NotPlacedError(
            f"{world_size} ranks need a CPU of Ray each, and the cluster has "
            f"{resources.get('CPU', 0):g}. Launch fewer (--nproc), or add nodes."
        )
    # As in a launch on one node: if there are enough GPUs, each rank gets one.
    num_gpus = 1 if resources.get("GPU", 0) >= world_size else 0
    # Threads, so that `send` is answered while `read` waits.
    actor_class: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_concurrency=4)(RemoteRank)
    return actor_class.options(name=f"{job} {rank}", scheduling_strategy="SPREAD").remote()


def _find_coordinator(ray: Any, job: str, placed: Any, rank: int, timeout: float) -> str:
    """Waits until this rank and rank 0 are placed; returns the address at which rank 0 listens."""
    until = time.monotonic() + timeout
    first = placed if rank == 0 else None
    while first is None:
        try:
            first = ray.get_actor(f"{job} 0")
        except ValueError as error:  # It does not exist yet.
            if time.monotonic() > until:
                raise _NotPlacedError(f"rank 0 has not come within {timeout:g} s.") from error
            time.sleep(0.1)
    try:
        # This rank first: if it is not placed in time, the error must name it, and not rank 0.
        ray.get(placed.address.remote(), timeout=timeout)
        address: str = ray.get(first.address.remote(), timeout=timeout)
    except ray.exceptions.GetTimeoutError as error:
        raise _NotPlacedError(
            f"it was not placed within {timeout:g} s ({_JOIN_TIMEOUT}): the nodes are busy."
        ) from error
    return address


def _forward_output(ray: Any, actor: Any) -> int:
    """Writes the rank's output until it has ended; returns its exit code."""
    status = None
    # Python's own streams have no buffer here, and might write only a part.
    with open(1, "wb", closefd=False) as out, open(2, "wb", closefd=False) as errors:
        while status is None:
            chunks, status = ray.get(actor.read.remote())
            for number, data in chunks:
                stream = out if number == 1 else errors
                stream.write(data)
                stream.flush()
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
