"""The command `keras-deepseek serve`."""

import argparse
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_deepseek.inference.engine import ServingEngine

NAME = "serve"
DEFAULT_GRPC_PORT = 8500
HELP = "answer TF Serving's and Open Inference's calls for a bundle or a .keras file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `serve`.

    Args:
        parser: `argparse.ArgumentParser` of the command.
    """
    parser.add_argument(
        "path", metavar="PATH", help="a bundle (what `export` wrote) or a .keras file"
    )
    parser.add_argument("--name", default="model", help="the model's name in URLs (default: model)")
    parser.add_argument(
        "--http-port",
        type=int,
        default=8501,
        metavar="P",
        help="0 takes a free one (default: 8501)",
    )
    parser.add_argument(
        "--grpc-port",
        type=int,
        metavar="P",
        help="likewise for gRPC (default: 8500, where the extra `grpc` is installed)",
    )
    parser.add_argument("--no-grpc", action="store_true", help="serve over HTTP alone")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="address to listen at (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--batch-size",
        default="dynamic",
        metavar="N",
        help="dynamic, or a number (default: dynamic)",
    )
    parser.add_argument(
        "--max-batch-size", type=int, default=32, metavar="N", help="largest batch (default: 32)"
    )
    parser.add_argument(
        "--target-latency",
        type=float,
        metavar="SECONDS",
        help="keep answers within so many seconds, and refuse what would take longer",
    )
    parser.add_argument(
        "--replicas", type=int, default=1, metavar="N", help="copies of the model (default: 1)"
    )
    parser.add_argument(
        "--cache-entries",
        type=int,
        default=0,
        metavar="N",
        help="answers that are kept for inputs that come again (default: 0)",
    )
    parser.add_argument(
        "--log-requests", metavar="FILE", help="write a sample of requests and answers there"
    )
    parser.add_argument(
        "--sample",
        type=float,
        default=0.01,
        metavar="PART",
        help="the part of requests that is written (default: 0.01)",
    )
    parser.add_argument(
        "--replay",
        metavar="FILE",
        help="do not serve: send the requests of such a file, and compare the answers",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="a token in each line, one of which clients must send: Authorization: Bearer TOKEN",
    )
    parser.add_argument("--tls-certificate", metavar="PEM", help="speak TLS, with this certificate")
    parser.add_argument(
        "--tls-key", metavar="PEM", help="its private key (default: it is in the same file)"
    )
    parser.add_argument(
        "--client-ca", metavar="PEM", help="serve clients alone that have a certificate of these"
    )
    parser.add_argument(
        "--access-log", action="store_true", help="a line of JSON for each request, on stderr"
    )
    parser.add_argument(
        "--custom-objects-from",
        action="append",
        default=[],
        metavar="MODULE_OR_FILE",
        help="a module or a .py file that defines custom layers; may be given several times",
    )


def run(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM or Ctrl-C; then finishes what was accepted and returns.

    Args:
        arguments: What the parser with `add_arguments` read.

    Raises:
        KerasDeepSeekError: Something in `arguments` can't be served.
    """
    import contextlib
    import signal
    import threading
    from pathlib import Path

    from keras_deepseek.inference.engine import ServingEngine
    from keras_deepseek.inference.live_line import LiveLine
    from keras_deepseek.inference.server_context import make_server_context
    from keras_deepseek.inference.termination import wait_heeding_signals

    def interrupt(_signal_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    size, grpc_port = arguments.batch_size, _grpc_port(arguments)
    # Stops the loading and the warm-up too: nothing has been accepted by then.
    previous = signal.signal(signal.SIGTERM, interrupt)
    engine = None
    try:
        context = make_server_context(
            arguments.tls_certificate, arguments.tls_key, arguments.client_ca
        )
        engine = ServingEngine(
            arguments.path,
            name=arguments.name,
            batch_size=_number_or_word(size),
            max_batch_size=arguments.max_batch_size,
            target_latency=arguments.target_latency,
            replicas=arguments.replicas,
            cache_entries=arguments.cache_entries,
            custom_objects_from=arguments.custom_objects_from,
            log_requests=arguments.log_requests,
            sample=arguments.sample,
        )
        if arguments.replay is not None:
            _replay(engine, arguments.replay)
            return
        engine.serve(
            arguments.http_port,
            grpc_port,
            host=arguments.host,
            tokens=Path(arguments.token_file) if arguments.token_file else None,
            ssl_context=context,
            access_log=arguments.access_log,
        )
        # Lines of the log would be written through it. It is made before a signal can be awaited:
        # one that comes amid its imports may be lost in them.
        line = contextlib.nullcontext() if arguments.access_log else LiveLine(engine)
        print(_describe(engine, arguments.no_grpc), flush=True)
        with line:
            wait_heeding_signals(threading.Event())
    except KeyboardInterrupt:
        pass
    finally:
        # A second signal does not wait for what is in flight.
        signal.signal(signal.SIGTERM, previous)
        if engine is not None:
            engine.close()


def _replay(engine: "ServingEngine", path: str) -> None:
    from keras_deepseek.artifacts.errors import NotSupportedError
    from keras_deepseek.inference.replay import replay_requests

    report = replay_requests(engine, path, model=engine.name)
    if not report.passed:
        raise NotSupportedError(f"The answers are others. {report}.")
    print(report, flush=True)


def _grpc_port(arguments: argparse.Namespace) -> int | None:
    """Returns TF Serving's own port, unless another is asked for, or none, or gRPC is missing."""
    from keras_deepseek.artifacts.errors import InvalidInputError

    if arguments.no_grpc and arguments.grpc_port is not None:
        raise InvalidInputError("Received both --grpc-port and --no-grpc. Give one of them.")
    if arguments.tls_certificate is not None and arguments.grpc_port is not None:
        raise InvalidInputError(
            "Received --grpc-port with --tls-certificate, which is for HTTP alone. Leave one "
            "out, or start `GrpcServer` in Python, with `credentials=`."
        )
    if arguments.grpc_port is not None:
        port: int = arguments.grpc_port
        return port
    # A name with a dot is looked for in its parent, which must be there.
    is_installed = all(find_spec(name) for name in ("grpc", "google", "google.protobuf"))
    # With TLS over HTTP, gRPC would be the door that is left open.
    is_wanted = not arguments.no_grpc and arguments.tls_certificate is None
    return DEFAULT_GRPC_PORT if is_installed and is_wanted else None


def _describe(engine: "ServingEngine", no_grpc: bool) -> str:
    http, *others = engine.servers
    text = f"Serving {engine.name!r} at {http.url}/v1/models/{engine.name}"
    if others:
        return f"{text} and {others[0].url}"
    if no_grpc or http.url.startswith("https:"):
        return text
    return f"{text}; for gRPC: pip install 'keras_deepseek[grpc]'"


def _number_or_word(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        return text
