"""The command `keras-deepseek launch`, which starts a training script in several processes."""

import argparse
import importlib.util
import sys
from pathlib import Path

from keras_deepseek.command_parser import add_backend_flag

NAME = "launch"
HELP = "run a training script in several processes, one for each rank"


_MASTER_PORT = 29500
"""The default of torchrun."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `keras-deepseek launch` to its parser."""
    parser.add_argument(
        "--nproc",
        "--nproc-per-node",
        type=int,
        required=True,
        metavar="N",
        help="number of processes on this node",
    )
    parser.add_argument(
        "--nnodes", type=int, default=1, metavar="M", help="number of nodes (default: 1)"
    )
    parser.add_argument(
        "--rank",
        "--node-rank",
        type=int,
        metavar="R",
        help="number of this node among the nodes, from 0 (not the RANK of a process); needed with "
        "--nnodes",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of rank 0 (default on one node: a free port on loopback)",
    )
    parser.add_argument(
        "--master-addr", metavar="HOST", help="the same as --coordinator HOST:PORT, in two flags"
    )
    parser.add_argument(
        "--master-port",
        type=int,
        metavar="PORT",
        help="with --master-addr: its port (default: 29500)",
    )
    parser.add_argument(
        "--strategy", default="allreduce", help="allreduce or parameter_server (default: allreduce)"
    )
    parser.add_argument(
        "--ps-count",
        type=int,
        metavar="K",
        help="number of processes that are parameter servers (default: 1)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="address of a Ray cluster that runs the processes (default: this node runs them)",
    )
    add_backend_flag(parser)
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="how often all processes are started again after a failure (default: 0)",
    )
    parser.add_argument(
        "--grace-period",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time between the signal to end and SIGKILL (default: 30)",
    )
    parser.add_argument("script", metavar="script.py", help="Python file that each process runs")
    parser.add_argument(
        "script_arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the script"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs `keras-deepseek launch`; returns if each process ended with exit code 0.

    Raises:
        KerasDeepSeekError: The arguments are wrong.
        SystemExit: A process failed. It has its exit code.
    """
    _open_launch()
    from keras_deepseek.errors import NotSupportedError

    if sys.platform == "win32":
        raise NotSupportedError("launch needs the signals of Linux or macOS, not of Windows.")
    from keras_deepseek.training.launch.job import Launcher
    from keras_deepseek.training.launch.plan import LaunchPlan
    from keras_deepseek.training.launch.script_backend import find_backend

    backend, source = find_backend(arguments.script, arguments.backend)
    plan = LaunchPlan(
        script=arguments.script,
        script_arguments=tuple(arguments.script_arguments),
        nproc=arguments.nproc,
        nnodes=arguments.nnodes,
        node_rank=arguments.rank,
        coordinator=_coordinator(arguments),
        strategy=arguments.strategy,
        ps_count=arguments.ps_count,
        ray=arguments.ray,
        backend=backend,
        backend_source=source,
        max_restarts=arguments.max_restarts,
        grace_period=arguments.grace_period,
    )
    if exit_code := Launcher(plan).run():
        sys.exit(exit_code)


def _coordinator(arguments: argparse.Namespace) -> str | None:
    from keras_deepseek.errors import InvalidInputError

    host, port = arguments.master_addr, arguments.master_port
    if host is None and port is None:
        coordinator: str | None = arguments.coordinator
        return coordinator
    if host is None or arguments.coordinator is not None:
        raise InvalidInputError(
            "Pass --coordinator HOST:PORT, or --master-addr HOST with or without --master-port."
        )
    return f"{host}:{_MASTER_PORT if port is None else port}"


def _open_launch() -> None:
    """Imports the package `launch` without the `__init__` of `training`.

    That would load Keras, which takes seconds and memory that the processes need.
    """
    name = "keras_deepseek.training.launch"
    if name in sys.modules:
        return
    folder = Path(__file__).with_name("launch")
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"There is no package at {folder}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
