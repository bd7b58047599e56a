"""The command `keras-deepseek serve`."""

import argparse
from typing import Any

NAME = "serve"
HELP = "answer TF Serving's REST calls for a bundle or a .keras file"


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
    import signal
    import threading

    from keras_deepseek.inference.engine import ServingEngine

    def interrupt(_signal_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    size = arguments.batch_size
    # Stops the loading and the warm-up too: nothing has been accepted by then.
    previous = signal.signal(signal.SIGTERM, interrupt)
    engine = None
    try:
        engine = ServingEngine(
            arguments.path,
            name=arguments.name,
            batch_size=_number_or_word(size),
            max_batch_size=arguments.max_batch_size,
            target_latency=arguments.target_latency,
            replicas=arguments.replicas,
            custom_objects_from=arguments.custom_objects_from,
        )
        server = engine.serve(arguments.http_port, host=arguments.host)
        print(f"Serving {engine.name!r} at {server.url}/v1/models/{engine.name}", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        # A second signal does not wait for what is in flight.
        signal.signal(signal.SIGTERM, previous)
        if engine is not None:
            engine.close()


def _number_or_word(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        return text
