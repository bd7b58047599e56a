"""The processes to launch, checked before anything is started."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from keras_deepseek.artifacts.network_address import check_is_answered, parse_address
from keras_deepseek.backend import NAMES
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import (
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
    unknown_name_message,
)
from keras_deepseek.training.launch.ports import check_port_is_free
from keras_deepseek.training.launch.script_names import joins_itself

Strategy = Literal["allreduce", "parameter_server"]


@dataclass(frozen=True)
class LaunchPlan:
    """The processes of one node, and the script that each of them runs.

    Args:
        script: string. The path of a Python file.
        nproc: integer. The processes on this node.
        backend: string. What Keras runs on.
        script_arguments: tuple of strings. What stands behind the script. Defaults to `()`.
        nnodes: integer. The nodes. Defaults to `1`.
        node_rank: integer. Which of them this one is. Defaults to `None`: the only one.
        coordinator: string. `HOST:PORT` of rank 0. Defaults to `None`: a free port of loopback.
        strategy: string. Defaults to `"allreduce"`.
        ps_count: integer. How many processes are parameter servers. Defaults to `None`: 1 for that
            strategy, and 0 else.
        ray: string. The address of a Ray cluster that runs the ranks, or the workers and servers
            of a parameter server on JAX or PyTorch. Defaults to `None`: all are on this node.
        max_restarts: integer. How often all is started again after a failure. Defaults to `0`.
        grace_period: float. The seconds between the signal to end and SIGKILL. Defaults to `30.0`.

    Raises:
        InvalidInputError: An argument is wrong, or two do not go together.
        NotSupportedError: What is asked for is not supported.
        MissingExtraError: Ray is to run it and is not installed.
        PeerLostError: There is no Ray cluster at the address.
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

    def __post_init__(self) -> None:
        check_integer("--nproc", self.nproc)
        check_integer("--max-restarts", self.max_restarts, least=0)
        check_number("--grace-period", self.grace_period, least=0)
        if self.backend not in NAMES:
            raise InvalidInputError(unknown_name_message("--backend", self.backend, NAMES))
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
        """The processes of all nodes."""
        return self.nnodes * self.nproc

    @property
    def is_served(self) -> bool:
        """True where one process runs the script, as chief, and starts the others itself."""
        return self.strategy == "parameter_server"

    @property
    def is_on_ray(self) -> bool:
        """True where the nodes of a Ray cluster run the ranks."""
        return self.ray is not None and not self.is_served

    @property
    def is_joined(self) -> bool:
        """True where a process may have to join the others before the script computes anything.

        Not PyTorch's, but a script may set its backend by itself. One that joins by itself does so,
        and workers of a parameter server on Ray join their chief.
        """
        is_on_its_own = self.is_served and self.backend != "tensorflow"
        return self.world_size > 1 and not is_on_its_own and not joins_itself(self.script)

    @property
    def num_started(self) -> int:
        """The processes that the launcher starts on this node."""
        return 1 if self.is_served else self.nproc

    @property
    def num_servers(self) -> int:
        """The processes that are parameter servers."""
        if not self.is_served:
            return 0
        return 1 if self.ps_count is None else self.ps_count

    def _check_script(self) -> None:
        """Raises an error where no process could begin, before the first of them is started."""
        if not Path(self.script).is_file():
            what = "is a folder" if Path(self.script).is_dir() else "does not exist"
            raise InvalidInputError(f"The script must be a Python file; {self.script!r} {what}.")
        try:
            compile(Path(self.script).read_bytes(), self.script, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            place = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            raise InvalidInputError(
                f"The script can't be run: {self.script!r}{place}: {getattr(error, 'msg', error)}."
            ) from error

    def _check_nodes(self) -> None:
        check_integer("--nnodes", self.nnodes)
        if self.node_rank is not None:
            check_integer("--rank", self.node_rank, least=0)
        if (self.node_rank or 0) >= self.nnodes:
            raise InvalidInputError(
                f"--rank is the number of this node, from 0; received --rank {self.node_rank} with "
                f"--nnodes {self.nnodes}."
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
                f"--max-restarts {self.max_restarts} is for one node: the launchers of "
                f"{self.nnodes} nodes don't know of each other's failures yet. Leave it out, and "
                "let what starts them start all of them again."
            )

    def _check_ray(self) -> None:
        if self.is_served and self.backend == "tensorflow":
            raise InvalidInputError(
                f"--ray {self.ray} is for a parameter server on jax or torch: that of tensorflow "
                "is its own. Name its processes by TF_CONFIG."
            )
        for option, value in (("--nnodes", self.nnodes > 1), ("--coordinator", self.coordinator)):
            if value and self.is_on_ray:
                raise InvalidInputError(
                    f"{option} is for nodes without Ray: with --ray {self.ray}, --nproc counts the "
                    "processes of all nodes, and rank 0 finds an address on its own. Leave it out."
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
                f"--ps-count {self.ps_count} is for --strategy parameter_server."
            )
        if self.ray is not None:
            self._check_ray()
        if self.strategy != "parameter_server":
            return
        if self.nnodes > 1 and self.backend != "tensorflow":
            raise InvalidInputError(
                f"One chief starts workers and servers on all nodes of a Ray cluster; received "
                f"--nnodes {self.nnodes}. Start `ray start` on each node, and give --ray ADDRESS "
                "to one launch."
            )
        if self.nnodes > 1:
            raise NotSupportedError(
                f"--strategy parameter_server is for one node on tensorflow; received --nnodes "
                f"{self.nnodes}. On several, set TF_CONFIG for each process yourself."
            )
        check_integer("--ps-count", self.num_servers)
        least = self.num_servers + 2
        if self.nproc < least:  # Of a Ray cluster too: they are counted in one way.
            raise InvalidInputError(
                f"A parameter server needs --nproc {least} or more: a chief, a worker and "
                f"--ps-count {self.num_servers}; received --nproc {self.nproc}."
            )
