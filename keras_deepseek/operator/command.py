"""The command `keras-deepseek operator`: runs it, renders what it would apply, sizes a target."""

import argparse
from typing import Any

NAME = "operator"
HELP = "serve ModelDeployments on Kubernetes, and scale them by their requests"

_DEFAULT_IMAGE = "keras-deepseek-serving"
_ALL = 100.0
"""The percentage of all requests."""
_PEAK_RATIO = 20  # The default peak, in capacities of one replica.

_PACKAGES = ("aiohttp", "kopf", "pydantic", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `keras-deepseek operator` to its parser."""
    parser.set_defaults(backend=None)  # It has no use for Keras.
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    run_parser = commands.add_parser("run", help="watch a cluster and apply what its objects ask")
    _add_settings(run_parser)
    run_parser.add_argument(
        "--liveness",
        metavar="URL",
        help="answer liveness probes here, as http://0.0.0.0:8080/healthz (default: nowhere)",
    )
    render = commands.add_parser("render", help="print the CRD, and the objects that would be made")
    _add_settings(render)
    render.add_argument("--crds-only", action="store_true", help="print the CRD alone")
    render.add_argument(
        "-f",
        "--file",
        action="append",
        default=[],
        metavar="FILE",
        help="a YAML file of ModelDeployments; - is the standard input; can be repeated",
    )
    _add_size(commands.add_parser("size", help="find the target that keeps 99.9 %% of requests"))


def _add_size(parser: argparse.ArgumentParser) -> None:
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument(
        "--url", metavar="URL", help="measure the capacity of one replica at this URL, with --body"
    )
    measured.add_argument(
        "--capacity", type=float, metavar="N", help="requests per second that a replica answers"
    )
    parser.add_argument("--body", metavar="FILE", help="with --url: the JSON of a typical request")
    parser.add_argument(
        "--cold-start",
        type=int,
        default=60,
        metavar="SECONDS",
        help="from the wish for a pod to its first answer (default: 60)",
    )
    parser.add_argument(
        "--queue-seconds",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="of work that may wait in a pod, by batching.maxQueueRows (default: 1)",
    )
    parser.add_argument(
        "--peak",
        type=float,
        metavar="N",
        help="requests per second at the peak of the day, without its noise of some percent "
        "(default: 20 times the capacity)",
    )
    parser.add_argument(
        "--min-replicas", type=int, default=2, metavar="N", help="fewest replicas (default: 2)"
    )
    parser.add_argument(
        "--max-replicas", type=int, default=1000, metavar="N", help="most replicas (default: 1000)"
    )
    parser.add_argument(
        "--traffic",
        action="append",
        metavar="NAME_OR_CSV",
        help="diurnal, bursty, flash, lost-region, or a CSV file of requests per second, a line "
        "for each second; can be repeated (default: all four)",
    )
    parser.add_argument(
        "--success",
        type=float,
        default=99.9,
        metavar="PERCENT",
        help="of requests that must be answered (default: 99.9)",
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--serving-image",
        default=_DEFAULT_IMAGE,
        metavar="IMAGE",
        help=f"image of objects that name none (default: {_DEFAULT_IMAGE})",
    )
    parser.add_argument(
        "--model-store",
        metavar="URI",
        help="where the models of objects that name none lie, by their names, as s3://models",
    )
    parser.add_argument(
        "--region", metavar="NAME", help="the region of this cluster, as objects list it"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the action.

    Raises:
        KerasDeepSeekError: A file or an object is wrong, or the cluster can't be reached.
    """
    from keras_deepseek.errors import MissingExtraError

    action = {"run": _run_operator, "render": _render, "size": _size}[arguments.action]
    try:
        action(arguments)
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        raise MissingExtraError(error.name, "operator", "for the operator") from error


def _settings(arguments: argparse.Namespace) -> Any:
    from keras_deepseek.errors import InvalidInputError
    from keras_deepseek.operator import api
    from keras_deepseek.operator.plan import Settings

    store = arguments.model_store
    if store is not None and (error := api.find_fault(api.Model, {"uri": f"{store}/model"})):
        raise InvalidInputError(f"--model-store {store!r}: {error}")
    return Settings(arguments.serving_image, store, arguments.region)


def _run_operator(arguments: argparse.Namespace) -> None:
    from keras_deepseek.operator.run_operator import run_operator

    run_operator(_settings(arguments), arguments.liveness)


def _render(arguments: argparse.Namespace) -> None:
    import sys

    from keras_deepseek.operator.render import render_crd, render_objects

    parts = [] if arguments.file and not arguments.crds_only else [render_crd()]
    if not arguments.crds_only:
        parts += [render_objects(name, _settings(arguments)) for name in arguments.file]
    sys.stdout.write("---\n".join(parts))


def _size(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from keras_deepseek.checks import check_integer, check_number
    from keras_deepseek.errors import InvalidInputError, unknown_name_message
    from keras_deepseek.operator.simulation import TRAFFIC, SimulatedDeployment
    from keras_deepseek.operator.sizing import describe_sizes, measure_capacity

    for name in ("capacity", "peak", "queue_seconds"):
        if (value := getattr(arguments, name)) is not None:
            check_number(f"--{name.replace('_', '-')}", value, above=0)
    check_integer("--cold-start", arguments.cold_start, minimum=0)
    if not 1 < arguments.success <= _ALL:
        raise InvalidInputError(
            f"--success must be a percentage such as 99.9, received {arguments.success:g}."
        )
    check_integer("--min-replicas", arguments.min_replicas)
    check_integer("--max-replicas", arguments.max_replicas, minimum=arguments.min_replicas)
    traffic = arguments.traffic or list(TRAFFIC)
    for name in traffic:
        if name not in TRAFFIC and not Path(name).exists():
            message = unknown_name_message("traffic", name, TRAFFIC)
            raise InvalidInputError(f"{message} There is no file of this name either.")
    capacity = arguments.capacity
    if capacity is None:
        if arguments.body is None:
            raise InvalidInputError("Received --url without --body. Add --body FILE.")
        try:
            body = Path(arguments.body).read_bytes()
        except OSError as error:
            raise InvalidInputError(f"Can't read {arguments.body}: {error}") from error
        capacity = measure_capacity(arguments.url, body)
    deployment = SimulatedDeployment(
        capacity,
        arguments.cold_start,
        arguments.min_replicas,
        arguments.max_replicas,
        queue_seconds=arguments.queue_seconds,
    )
    peak = arguments.peak or _PEAK_RATIO * capacity
    print(describe_sizes(deployment, peak, traffic, arguments.success / 100))
