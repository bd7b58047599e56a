"""The arguments of `keras-deepseek launch`, checked before anything is started."""

import ast
import contextlib
import errno
import importlib.util
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from keras_deepseek.artifacts.network_address import check_is_answered, join_address, parse_address
from keras_deepseek.backend import NAMES
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import (
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
    unknown_name_message,
)

Strategy = Literal["allreduce", "parameter_server"]

LOOPBACK = "127.0.0.1"
_TAKEN = (errno.EADDRINUSE, errno.EACCES)


def find_free_ports(count: int) -> list[int]:
    """Returns different free ports of the loopback interface."""
    with contextlib.ExitStack() as stack:
        # All are open at the same time, so that none is found twice.
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind((LOOPBACK, 0))
        return [listener.getsockname()[1] for listener in sockets]


def check_port_is_free(host: str, port: int) -> None:
    """Raises an error if the host is this machine and the port is in use.

    A host that is not this machine, or has an unknown name, is not checked.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return
    for family, kind, protocol, _, address in addresses:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as listener:
            # Without it, a port that was used a minute ago counts as in use.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            problem = _bind(listener, address)
            if problem in _TAKEN:
                raise InvalidInputError(
                    f"Rank 0 can't listen at {join_address(host, port)}: {os.strerror(problem)}. "
                    "Use a free port."
                )


def _bind(listener: socket.socket, address: tuple[object, ...]) -> int:
    """Binds a socket; returns the number of the error, or 0."""
    try:
        listener.bind(address)
    except OSError as error:
        return error.errno or 0
    return 0


@dataclass(frozen=True)
class LaunchPlan:
    """The processes that the launcher starts on one node, and the script that they run.

    Args:
        nproc: The number of processes on this node.
        node_rank: The number of this node, from 0. `None`: the only node.
        coordinator: `HOST:PORT` of rank 0. `None`: a free port on loopback.
        ps_count: The number of processes that are parameter servers. `None`: 1 for that strategy,
            else 0.
        ray: The address of a Ray cluster that runs the ranks, or the workers and servers of a
            parameter server on JAX or PyTorch. `None`: all run on this node.
        max_restarts: How often all processes may be started again after a failure.
        grace_period: Seconds between the signal to end and SIGKILL.
        backend_source: What has chosen the backend, for the first line of the launcher.
    """

    script: str
    nproc: int
    backend: str
    script_arguments: tuple[str, ...] = ()
    nnodes: int = 1
    node_rank: int | None = None
    coordinator: str | None = None
    strategy: Strategy = "allreduce"
    ps_count: int | None = None
    ray: str | None = None
    max_restarts: int = 0
    grace_period: float = 30.0
    backend_source: str = "--backend"

    def __post_init__(self) -> None:
        check_integer("--nproc", self.nproc)
        check_integer("--max-restarts", self.max_restarts, minimum=0)
        check_number("--grace-period", self.grace_period, minimum=0)
        if self.backend not in NAMES:
            raise InvalidInputError(unknown_name_message(self.backend_source, self.backend, NAMES))
        self._check_script()
        self._check_nodes()
        self._check_strategy()
        if self.coordinator is not None:
            address = parse_address("--coordinator", self.coordinator)
            if self.first_rank == 0:
                check_port_is_free(*address)

    @property
    def first_rank(self) -> int:
        """The rank of this node's first process."""
        return (self.node_rank or 0) * self.nproc

    @property
    def world_size(self) -> int:
        """The number of processes of all nodes."""
        return self.nnodes * self.nproc

    @property
    def is_served(self) -> bool:
        """True if one process runs the script as chief, and starts workers and servers itself."""
        return self.strategy == "parameter_server"

    @property
    def is_on_ray(self) -> bool:
        """True if the nodes of a Ray cluster run the ranks."""
        return self.ray is not None and not self.is_served

    @property
    def is_joined(self) -> bool:
        """True if a process may have to join the others before the script computes anything.

        PyTorch needs no such joining. A script that joins by itself is left alone. Workers of a
        parameter server on Ray join their chief.
        """
        is_on_its_own = self.is_served and self.backend != "tensorflow"
        must_join = self.backend != "torch" and not is_on_its_own
        return self.world_size > 1 and must_join and not joins_itself(self.script)

    @property
    def num_started(self) -> int:
        """The number of processes that the launcher starts on this node."""
        return 1 if self.is_served else self.nproc

    @property
    def num_servers(self) -> int:
        """The number of processes that are parameter servers."""
        if not self.is_served:
            return 0
        return 1 if self.ps_count is None else self.ps_count

    def _check_script(self) -> None:
        if not Path(self.script).is_file():
            what = "is a folder" if Path(self.script).is_dir() else "does not exist"
            raise InvalidInputError(f"Expected a Python file to run; {self.script!r} {what}.")
        try:
            compile(Path(self.script).read_bytes(), self.script, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            raise InvalidInputError(
                f"The script has an error: {self.script!r}{line}: {getattr(error, 'msg', error)}."
            ) from error

    def _check_nodes(self) -> None:
        check_integer("--nnodes", self.nnodes)
        if self.node_rank is not None:
            check_integer("--rank", self.node_rank, minimum=0)
        if (self.node_rank or 0) >= self.nnodes:
            raise InvalidInputError(
                f"--rank is the number of this node, from 0, and must be below --nnodes; received "
                f"--rank {self.node_rank} with --nnodes {self.nnodes}."
            )
        if self.nnodes == 1:
            return
        for option, value in (("--rank", self.node_rank), ("--coordinator", self.coordinator)):
            if value is None:
                raise InvalidInputError(
                    f"--nnodes {self.nnodes} needs {option}: the number of this node and the "
                    "address of rank 0, as in --rank 0 --coordinator 10.0.0.1:29500."
                )
        if self.max_restarts:
            raise NotSupportedError(
                f"--max-restarts {self.max_restarts} works on one node only: the launchers of "
                f"{self.nnodes} nodes don't know of each other's failures. Leave it out, and start "
                "all launchers again after a failure."
            )

    def _check_ray(self) -> None:
        if self.is_served and self.backend == "tensorflow":
            raise InvalidInputError(
                f"--ray {self.ray} with --strategy parameter_server is for jax or torch; on "
                "tensorflow the chief starts the processes. Leave it out, or set TF_CONFIG."
            )
        for option, value in (("--nnodes", self.nnodes > 1), ("--coordinator", self.coordinator)):
            if value and self.is_on_ray:
                raise InvalidInputError(
                    f"{option} is for nodes without Ray: with --ray {self.ray}, --nproc counts the "
                    "processes of all nodes, and rank 0 chooses the address. Leave it out."
                )
        if importlib.util.find_spec("ray") is None:
            raise MissingExtraError("ray", "ray", "for --ray")
        if self.ray is not None and self.ray != "auto":
            check_is_answered("Ray cluster", self.ray.removeprefix("ray://"))

    def _check_strategy(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise InvalidInputError(
                unknown_name_message("--strategy", self.strategy, get_args(Strategy))
            )
        if self.strategy != "parameter_server" and self.ps_count is not None:
            raise InvalidInputError(
                f"--ps-count {self.ps_count} needs --strategy parameter_server; received "
                f"--strategy {self.strategy}."
            )
        if self.ray is not None:
            self._check_ray()
        if self.strategy != "parameter_server":
            return
        if self.nnodes > 1 and self.backend != "tensorflow":
            raise InvalidInputError(
                f"--strategy parameter_server needs Ray on several nodes; received --nnodes "
                f"{self.nnodes}. Run `ray start` on each node, and one launch with --ray ADDRESS."
            )
        if self.nnodes > 1:
            raise NotSupportedError(
                f"--strategy parameter_server on tensorflow starts processes on one node only; "
                f"received --nnodes {self.nnodes}. For several nodes, set TF_CONFIG for each "
                "process yourself."
            )
        check_integer("--ps-count", self.num_servers)
        least = self.num_servers + 2
        if self.nproc < least:  # With --ray too.
            raise InvalidInputError(
                f"A parameter server needs --nproc {least} or more: a chief, a worker and "
                f"--ps-count {self.num_servers}; received --nproc {self.nproc}."
            )


_JOINING = {
    "join_cluster",
    "DataParallel",
    "ModelParallel",
    "CentralStorageStrategy",
    "MirroredStrategy",
    "MultiWorkerMirroredStrategy",
    "OneDeviceStrategy",
    "ParameterServerStrategy",
    "ParameterServerStrategyV2",
    "TPUStrategy",
}
_ENGINES = {"distributed", "distribution"}
"""The modules of JAX and Keras whose `initialize` joins the processes."""


def joins_itself(script: str) -> bool:
    """Returns True if a script joins processes or sets up devices itself.

    It does so by `join_cluster`, by `initialize` of JAX or Keras, or by an object of
    `keras.distribution` or `tf.distribute`. Some of these fail or crash if the processes have
    already joined.
    """
    return any(_is_joining(node) for node in ast.walk(ast.parse(Path(script).read_bytes())))


def _is_joining(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute) and node.attr == "initialize":
        return _name(node.value) in _ENGINES
    return _name(node) in _JOINING


def _name(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
            return name
    return ""
