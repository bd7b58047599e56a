"""The command `keras-deepseek serve`: its arguments, and what it does from the start to SIGTERM.

`serve_settings` reads what the arguments mean.
"""

import argparse
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keras_deepseek.inference.engine import ServingEngine
    from keras_deepseek.inference.server.termination import Interruption

NAME = "serve"
HELP = "answer TF Serving's and Open Inference's calls for a bundle or a model's file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `serve`.

    Args:
        parser: `argparse.ArgumentParser` of the command.
    """
    # All of them would fill a screen above an error's one line.
    parser.usage = "%(prog)s (PATH | --model-config FILE) [options]"
    _add_model_arguments(parser)
    _add_batching_arguments(parser)
    _add_padding_arguments(parser)
    _add_listening_arguments(parser)
    _add_care_arguments(parser)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    models = group.add_mutually_exclusive_group(required=True)
    models.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="a bundle (what `export` wrote), a SavedModel, an .onnx or a .keras file, or a folder "
        "of them named by numbers, whose newest is served, also when it comes later",
    )
    models.add_argument(
        "--model-config",
        metavar="FILE",
        help="several models, each a folder of versions: what TF Serving takes as "
        "--model_config_file, with its version policies and labels",
    )
    group.add_argument("--name", help="the model's name in URLs (default: model)")
    group.add_argument(
        "--model-version", type=int, metavar="N", help="the bundle's version in URLs (default: 1)"
    )
    group.add_argument(
        "--replicas", type=int, default=1, metavar="N", help="copies of the model (default: 1)"
    )
    group.add_argument(
        "--isolated",
        action="store_true",
        help="each replica in a process of its own, started anew where it crashes or hangs",
    )
    group.add_argument(
        "--batch-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="with --isolated: a batch that takes longer hangs (default: 60)",
    )
    group.add_argument(
        "--no-warm-up", action="store_true", help="do not run each batch size before the first call"
    )
    group.add_argument(
        "--custom-objects-from",
        action="append",
        default=[],
        metavar="MODULE_OR_FILE",
        help="a module or a .py file that defines custom layers; may be given several times",
    )


def _add_batching_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("batching")
    group.add_argument(
        "--batch-size",
        default="dynamic",
        metavar="N",
        help="dynamic, or a number (default: dynamic)",
    )
    group.add_argument(
        "--max-batch-size", type=int, default=32, metavar="N", help="largest batch (default: 32)"
    )
    group.add_argument(
        "--max-wait",
        type=float,
        default=0.005,
        metavar="SECONDS",
        help="that a batch of a fixed size waits to be full (default: 0.005)",
    )
    group.add_argument(
        "--target-latency",
        type=float,
        metavar="SECONDS",
        help="keep answers within so many seconds, and refuse what would take longer",
    )
    group.add_argument(
        "--max-queue-rows",
        type=int,
        default=1024,
        metavar="N",
        help="rows that may wait before requests are refused (default: 1024)",
    )
    group.add_argument(
        "--max-concurrent-batches",
        type=int,
        metavar="N",
        help="batches that run at a time, of all models together (default: one each replica)",
    )


def _add_padding_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "padding",
        "Requests of unequal lengths share batches when they are filled up, as in "
        "--pad-lengths 16,32,64 --pad-value tokens=0 --pad-mask mask=tokens",
    )
    group.add_argument(
        "--pad-lengths", metavar="N,N,...", help="a free axis is filled up to the next of these"
    )
    group.add_argument(
        "--pad-value",
        action="append",
        default=[],
        metavar="INPUT=NUMBER",
        help="what an input is filled with; one for each input with a free axis",
    )
    group.add_argument(
        "--pad-mask",
        action="append",
        default=[],
        metavar="MASK=INPUT",
        help="an input that the server makes: true where the other has data; or by_value, where "
        "the model knows padding by its value",
    )
    group.add_argument(
        "--pad-output",
        action="append",
        default=[],
        metavar="OUTPUT=INPUT",
        help="whose length an output has, where several inputs are filled",
    )


def _add_listening_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("listening")
    group.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="address to listen at (default: 127.0.0.1)"
    )
    group.add_argument(
        "--http-port",
        type=int,
        default=8501,
        metavar="P",
        help="0 takes a free one (default: 8501)",
    )
    group.add_argument(
        "--grpc-port",
        type=int,
        metavar="P",
        help="likewise for gRPC (default: 8500, where the extra `grpc` is installed)",
    )
    group.add_argument("--no-grpc", action="store_true", help="serve over HTTP alone")
    group.add_argument(
        "--max-body-bytes",
        type=int,
        default=64 * 2**20,
        metavar="N",
        help="larger requests are refused, also when inflated (default: 64 MiB)",
    )
    group.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="a limit of connections, a field of HttpLimits, as in idle_seconds=10 or "
        "grace_seconds=60; may be given several times",
    )
    group.add_argument(
        "--tls-certificate", metavar="PEM", help="speak TLS, over gRPC too, with this certificate"
    )
    group.add_argument(
        "--tls-key", metavar="PEM", help="its private key (default: it is in the same file)"
    )
    group.add_argument(
        "--client-ca", metavar="PEM", help="serve clients alone that have a certificate of these"
    )
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help="a token in each line, one of which clients must send: Authorization: Bearer TOKEN",
    )


def _add_care_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("care")
    group.add_argument(
        "--access-log", action="store_true", help="a line of JSON for each request, on stderr"
    )
    group.add_argument(
        "--traces",
        action="store_true",
        help="a span of OpenTelemetry for each request, sent where OTEL_* says (extra `telemetry`)",
    )
    group.add_argument(
        "--cache-entries",
        type=int,
        default=0,
        metavar="N",
        help="answers that are kept for inputs that come again (default: 0)",
    )
    group.add_argument(
        "--log-requests", metavar="FILE", help="write a sample of requests and answers there"
    )
    group.add_argument(
        "--sample",
        type=float,
        metavar="PART",
        help="the part of requests that is written (default: 0.01)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM, Ctrl-C or SIGHUP; then finishes what was accepted and returns.

    Args:
        arguments: What the parser with `add_arguments` read.

    Raises:
        KerasDeepSeekError: Something in `arguments` can't be served.
    """
    from keras_deepseek.inference.engine import ServingEngine
    from keras_deepseek.inference.serve_settings import read_settings
    from keras_deepseek.inference.server.termination import Interruption

    settings = read_settings(arguments)
    engine = None
    try:
        # Stops the loading and the warm-up too: nothing has been accepted by then.
        with Interruption(takes_sigterm=True) as interruption:
            engine = ServingEngine(settings.model, **settings.of_engine)
            interruption.check()
            with _failures_in_a_line(engine):
                with _warnings_in_a_line():
                    engine.serve(**settings.of_servers)
                _wait(engine, arguments, interruption)
    finally:
        # A second signal does not wait for what is in flight.
        if engine is not None:
            engine.close()


@contextlib.contextmanager
def _failures_in_a_line(engine: "ServingEngine") -> "Iterator[None]":
    """Says in a line which warm-up failed: the traceback, through the model, is for the log."""
    import logging

    from keras_deepseek.errors import NotSupportedError

    try:
        yield
    except Exception as error:
        versions = [one for served in engine.models.values() for one in served.versions.values()]
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
def _warnings_in_a_line() -> "Iterator[None]":
    """Shows warnings without the line of this package's source that they come from."""
    import warnings

    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"keras-deepseek serve: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _wait(
    engine: "ServingEngine", arguments: argparse.Namespace, interruption: "Interruption"
) -> None:
    """Says where it is served, and waits for the signal."""
    import threading

    from keras_deepseek.inference.monitoring.live_line import LiveLine

    # Lines of the log would be written through it.
    line = contextlib.nullcontext() if arguments.access_log else LiveLine(engine)
    print(_describe(engine, arguments.no_grpc), flush=True)
    with line:
        # One that came amid imports may have been lost in them.
        interruption.wait(threading.Event())


def _describe(engine: "ServingEngine", no_grpc: bool) -> str:
    http, *others = engine.servers
    place = http.url if len(engine.models) > 1 else f"{http.url}/v1/models/{engine.name}"
    text = f"Serving {', '.join(map(repr, engine.models))} at {place}"
    if others:
        return f"{text} and {others[0].url}"
    return text if no_grpc else f"{text}; for gRPC: pip install 'keras_deepseek[grpc]'"
