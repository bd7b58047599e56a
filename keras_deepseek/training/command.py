"""The command `keras-deepseek launch`."""

import argparse
import importlib.util
import sys
from pathlib import Path

NAME = "launch"
HELP = "run a training script in several processes, one a rank, until all have ended"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `launch`.

    Args:
        parser: `argparse.ArgumentParser` of the command.
    """
    parser.add_argument(
        "--nproc", type=int, required=True, metavar="N", help="processes on this node"
    )
    parser.add_argument("--nnodes", type=int, default=1, metavar="M", help="nodes (default: 1)")
    parser.add_argument(
        "--rank", type=int, metavar="R", help="the number of this node, from 0; with --nnodes"
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="the address of the process with rank 0 (default, on one node: a free loopback port)",
    )
    parser.add_argument(
        "--strategy",
        default="allreduce",
        help="allreduce or parameter_server (default: allreduce)",
    )
    parser.add_argument(
        "--ps-count",
        type=int,
        metavar="K",
        help="how many of the processes are parameter servers (default: 1)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="a Ray cluster whose nodes run the processes (default: this node does)",
    )
    parser.add_argument(
        "--backend", help="tensorflow, jax or torch (default: what Keras takes by itself)"
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="how often all are started again where one fails (default: 0)",
    )
    parser.add_argument(
        "--grace-period",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="from the signal to end to SIGKILL (default: 30)",
    )
    parser.add_argument("script", metavar="script.py", help="what each process runs")
    parser.add_argument(
        "script_arguments", nargs=argparse.REMAINDER, metavar="...", help="its own arguments"
    )


def run(arguments: argparse.Namespace) -> None:
    """Launches, and returns where each process ended with exit code 0.

    Args:
        arguments: What the parser with `add_arguments` read.

    Raises:
        KerasDeepSeekError: Something in `arguments` can't be launched.
        SystemExit: A process failed; with its exit code.
    """
    _open_launch()
    from keras_deepseek.errors import NotSupportedError

    if sys.platform == "win32":
        raise NotSupportedError("launch needs the signals of Linux or macOS.")
    from keras_deepseek import backend
    from keras_deepseek.training.launch.launcher import Launcher
    from keras_deepseek.training.launch.plan import LaunchPlan

    plan = LaunchPlan(
        script=arguments.script,
        script_arguments=tuple(arguments.script_arguments),
        nproc=arguments.nproc,
        nnodes=arguments.nnodes,
        node_rank=arguments.rank,
        coordinator=arguments.coordinator,
        strategy=arguments.strategy,
        ps_count=arguments.ps_count,
        ray=arguments.ray,
        backend=arguments.backend or backend.chosen(),
        max_restarts=arguments.max_restarts,
        grace_period=arguments.grace_period,
    )
    if exit_code := Launcher(plan).run():
        sys.exit(exit_code)


def _open_launch() -> None:
    """Makes the folder `launch` known: an import by name would run the room's `__init__` first.

    That loads Keras, which takes seconds and memory beside the processes that need both.
    """
    name = "keras_deepseek.training.launch"
    if name in sys.modules:
        return
    folder = Path(__file__).with_name("launch")
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"No package at {folder}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
