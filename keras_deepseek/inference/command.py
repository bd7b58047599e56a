"""The command `keras-deepseek serve`: its arguments, and its run from the start to SIGTERM.

`serve_settings` checks the arguments.
"""

import argparse
import contextlib
from typing import TYPE_CHECKING

from keras_deepseek.command_parser import (
    add_backend_flag,
    add_config_flag,
    add_custom_objects_flag,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keras_deepseek.inference.engine import ServingEngine
    from keras_deepseek.inference.http.http_limits import HttpLimits
    from keras_deepseek.inference.server.termination import Interruption

NAME = "serve"
HELP = "serve a bundle or a model file to clients of TF Serving and of Open Inference"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `serve` to its parser."""
    # The engine has the defaults of its options: an argument that is not given is `None`.
    # A usage with all options would fill the screen above a one-line error.
    parser.usage = "%(prog)s (PATH | --model-config FILE) [options]"
    add_backend_flag(parser)
    _add_model_arguments(parser)
    _add_batching_arguments(parser)
    _add_padding_arguments(parser)
    _add_listening_arguments(parser)
    _add_access_arguments(parser)
    _add_operation_arguments(parser)
    add_config_flag(parser)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    models = group.add_mutually_exclusive_group()
    models.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="a bundle (written by `export`), a SavedModel, an .onnx or a .keras file; or a folder "
        "of these, named by numbers: the newest is served, also if it is added later; or a URI: "
        "s3://, gs://, az://, https:// (extra `remote`), or hf://org/name@revision (extra `hub`)",
    )
    models.add_argument(
        "--model-config",
        metavar="FILE",
        help="a file that lists several models, each a folder of versions: TF Serving's "
        "--model_config_file, with its version policies and labels",
    )
    group.add_argument(
        "--cache-dir",
        metavar="FOLDER",
        help="where models of URIs are kept (default: keras_deepseek in the user's cache)",
    )
    group.add_argument("--name", help="the model's name in URLs (default: model)")
    group.add_argument(
        "--model-version", type=int, metavar="N", help="the model's version in URLs (default: 1)"
    )
    group.add_argument(
        "--replicas",
        type=int,
        metavar="N",
        help="threads or processes that run the model, each with a copy (default: 1)",
    )
    group.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads that compute a batch of one replica (default: the CPUs of this "
        "container, divided among the replicas; without a limit, the runtime's choice)",
    )
    group.add_argument(
        "--isolated",
        action="store_true",
        help="run each replica in its own process, and restart a process that crashes or hangs",
    )
    group.add_argument(
        "--batch-timeout",
        type=float,
        metavar="SECONDS",
        help="with --isolated: a batch that takes longer counts as hung (default: 60)",
    )
    group.add_argument(
        "--no-warm-up",
        action="store_true",
        help="do not run every batch size at the start; first requests may wait for compilation",
    )
    add_custom_objects_flag(group)


def _add_batching_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("batching")
    group.add_argument(
        "--batch-size",
        metavar="N",
        help="rows of every batch; or dynamic: batches grow with the load (default: dynamic)",
    )
    group.add_argument(
        "--max-batch-size",
        type=int,
        metavar="N",
        help="rows of the largest batch (default: 32)",
    )
    group.add_argument(
        "--max-wait",
        type=float,
        metavar="SECONDS",
        help="with a number as --batch-size: a batch that is not full runs after this time "
        "(default: 0.005)",
    )
    group.add_argument(
        "--target-latency",
        type=float,
        metavar="SECONDS",
        help="answer within this time, and refuse requests that would take longer",
    )
    group.add_argument(
        "--max-queue-rows",
        type=int,
        metavar="N",
        help="rows that may wait before requests are refused (default: 1024, and more while they "
        "can be answered within 5 seconds and take at most 256 MiB)",
    )
    group.add_argument(
        "--max-concurrent-batches",
        type=int,
        metavar="N",
        help="batches that run at the same time, for all models (default: one for each replica)",
    )


def _add_padding_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "padding",
        "Requests of different lengths share batches when they are padded, as in "
        "--pad-lengths 16,32,64 --pad-value tokens=0 --pad-mask mask=tokens",
    )
    group.add_argument(
        "--pad-lengths", metavar="N,N,...", help="pad a free axis to the next of these lengths"
    )
    group.add_argument(
        "--pad-value",
        action="append",
        default=[],
        metavar="INPUT=NUMBER",
        help="the number to pad an input with; one for each input with a free axis",
    )
    group.add_argument(
        "--pad-mask",
        action="append",
        default=[],
        metavar="MASK=INPUT",
        help="an input that the server makes: true where the other input has data; or by_value, if "
        "the model recognizes padding by its value",
    )
    group.add_argument(
        "--pad-output",
        action="append",
        default=[],
        metavar="OUTPUT=INPUT",
        help="the input whose length an output has, if several inputs are padded",
    )


def _add_listening_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("listening")
    group.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen at; 0.0.0.0: all of this machine (default: 127.0.0.1, which only "
        "this machine reaches)",
    )
    group.add_argument(
        "--http-port",
        type=int,
        default=8501,
        metavar="PORT",
        help="port for HTTP; 0 takes a free one (default: 8501)",
    )
    group.add_argument(
        "--grpc-port",
        type=int,
        metavar="PORT",
        help="port for gRPC; 0 takes a free one (default: 8500, if the extra `grpc` is installed)",
    )
    group.add_argument(
        "--admin-port",
        type=int,
        metavar="PORT",
        help="port for health checks and /metrics alone, without TLS and tokens; open before the "
        "model is loaded; 0 takes a free one (default: none)",
    )
    group.add_argument("--no-grpc", action="store_true", help="serve over HTTP only")
    group.add_argument(
        "--max-body-bytes",
        type=int,
        default=64 * 2**20,
        metavar="N",
        help="refuse larger requests (default: 64 MiB); after decompression 16 MiB at most",
    )
    group.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="a limit for connections, a field of HttpLimits, as in idle_seconds=10 or "
        "grace_seconds=60; can be repeated",
    )


def _add_access_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("access", "These hold for HTTP and gRPC.")
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help="refuse requests without a token of this file, which has one in each line; clients "
        "send the header Authorization: Bearer TOKEN",
    )
    group.add_argument(
        "--tls-certificate",
        metavar="FILE",
        help="turn on TLS with this PEM file: the server's certificate, and those that lead from "
        "it to an authority",
    )
    group.add_argument(
        "--tls-key",
        metavar="FILE",
        help="with --tls-certificate: a PEM file with its private key, without a password "
        "(default: the key is in the file of the certificate)",
    )
    group.add_argument(
        "--client-ca",
        metavar="FILE",
        help="with --tls-certificate: refuse clients without a certificate of an authority in this "
        "PEM file",
    )
    group.add_argument(
        "--model-control",
        choices=("none", "explicit"),
        default="none",
        help="explicit: clients may load and unload models, with a token of "
        "--management-token-file (default: none)",
    )
    group.add_argument(
        "--management-token-file",
        metavar="FILE",
        help="with --model-control explicit: the tokens for loading and unloading models, one in "
        "each line",
    )


def _add_operation_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("operation")
    group.add_argument(
        "--access-log", action="store_true", help="write a line of JSON for each request to stderr"
    )
    group.add_argument(
        "--traces",
        action="store_true",
        help="send an OpenTelemetry span for each request, as OTEL_* says (extra `telemetry`)",
    )
    group.add_argument(
        "--cache-entries",
        type=int,
        metavar="N",
        help="answers to cache for inputs that come again (default: 0)",
    )
    group.add_argument(
        "--log-requests", metavar="FILE", help="write a sample of requests and answers to this file"
    )
    group.add_argument(
        "--sample",
        type=float,
        metavar="FRACTION",
        help="with --log-requests: the fraction of requests to write (default: 0.01)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM, Ctrl-C or SIGHUP, then answers the accepted requests and returns.

    Raises:
        KerasDeepSeekError: An argument is wrong, or the model can't be served.
    """
    import logging

    from keras_deepseek.inference.engine import ServingEngine
    from keras_deepseek.inference.model_download import fetch_model, is_uri
    from keras_deepseek.inference.serve_settings import read_settings
    from keras_deepseek.inference.server.admin_server import AdminServer
    from keras_deepseek.inference.server.open_files import raise_limit
    from keras_deepseek.inference.server.termination import Interruption

    settings = read_settings(arguments)
    raise_limit()
    engine, admin = None, None
    try:
        if arguments.admin_port is not None:
            admin = AdminServer(arguments.host, arguments.admin_port)
            admin.start()
        # A signal stops the loading and the warm-up, too: no request is accepted yet.
        with Interruption(takes_sigterm=True) as interruption:
            model = settings.model
            if is_uri(model):
                model = fetch_model(model, arguments.cache_dir)
            engine = ServingEngine(model, **settings.of_engine)
            if admin is not None:
                admin.engine = engine
            interruption.check()
            with _one_line_errors(engine):
                with _one_line_warnings():
                    engine.serve(**settings.of_servers)
                threads = settings.of_engine.get("threads", "as the runtime chooses")
                logging.getLogger(__name__).info("The model is ready. CPU threads: %s.", threads)
                _wait(engine, arguments, settings.of_servers["limits"], interruption)
    finally:
        # Another signal ends the process without waiting for requests in flight.
        if engine is not None:
            engine.close()
        if admin is not None:
            admin.stop()


@contextlib.contextmanager
def _one_line_errors(engine: "ServingEngine") -> "Iterator[None]":
    """Context manager that reports a failed warm-up in one line. The traceback goes to the log."""
    import logging

    from keras_deepseek.errors import NotSupportedError

    try:
        yield
    except Exception as error:
        versions = [
            version for served in engine.models.values() for version in served.versions.values()
        ]
        failed = next((version for version in versions if version.error is error), None)
        if failed is None:
            raise
        logging.getLogger(__name__).debug("The warm-up failed.", exc_info=True)
        first_line, *_ = str(error).splitlines() or [""]
        notes = " ".join(getattr(error, "__notes__", ()))
        raise NotSupportedError(
            f"The warm-up of version {failed.number} of the model {failed.name!r} failed with "
            f"{type(error).__name__}: {first_line.rstrip('.')}. {notes}"
        ) from error


@contextlib.contextmanager
def _one_line_warnings() -> "Iterator[None]":
    """Context manager that shows warnings without the source line that raised them."""
    import warnings

    default_format = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"keras-deepseek serve: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = default_format


def _wait(
    engine: "ServingEngine",
    arguments: argparse.Namespace,
    limits: "HttpLimits",
    interruption: "Interruption",
) -> None:
    """Prints the server's address, and waits for a signal that ends it."""
    from keras_deepseek.inference.engine_servers import rare_collections, unready_after_signal
    from keras_deepseek.inference.server.live_line import LiveLine

    # Log lines and a live line would mix on the terminal.
    line = contextlib.nullcontext() if arguments.access_log else LiveLine(engine)
    servers = engine.servers
    is_unready = unready_after_signal(servers, limits.unready_seconds, interruption)
    with rare_collections(), is_unready, line:
        print(_describe(engine, arguments.no_grpc), flush=True)
        # It also raises for a signal that was lost during an import.
        interruption.wait(servers[0].ended)


def _describe(engine: "ServingEngine", no_grpc: bool) -> str:
    """Returns the line with the URLs, and the missing extra if gRPC was not turned off."""
    from keras_deepseek.inference.engine_servers import describe_servers

    line = describe_servers(engine, engine.servers)
    if no_grpc or len(engine.servers) > 1:
        return line
    return f"{line}; to serve gRPC: pip install 'keras_deepseek[grpc]'"
