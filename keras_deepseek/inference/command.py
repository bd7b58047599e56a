"""The command `keras-deepseek serve`: its flags, and its run from the start to SIGTERM.

Most flags come from the fields of `ModelOptions` and `ServerOptions`.
"""

import argparse
import contextlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from keras_deepseek.command_parser import (
    add_backend_flag,
    add_config_flag,
    add_custom_objects_flag,
)
from keras_deepseek.errors import InvalidInputError, MissingExtraError, NotSupportedError
from keras_deepseek.inference.arguments import check_seconds
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.options import add_flags, read_flags
from keras_deepseek.inference.server.grpc_packages import check_grpc_packages
from keras_deepseek.inference.server.server_options import ServerOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keras_deepseek.inference.engine import ServingEngine
    from keras_deepseek.inference.models.poller import Poller

NAME = "serve"
HELP = (
    "serve a bundle or a model file to clients of TF Serving and of Open Inference, and a language "
    "model to those of OpenAI"
)

_GROUPS = {
    "model": None,
    "batching": None,
    "language models": None,
    "padding": "Requests of different lengths share batches when they are padded, as in "
    "--pad-lengths 16,32,64 --pad-value tokens=0 --pad-mask mask=tokens",
    "listening": None,
    "access": "These hold for HTTP and gRPC.",
    "operation": None,
}
"""The groups of `--help` by title, with their descriptions."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `serve` to its parser."""
    # The options have their defaults: a flag that is not given is `None`.
    # A usage with all options would fill the screen above a one-line error.
    parser.usage = "%(prog)s (PATH | --model-config FILE) [options]"
    add_backend_flag(parser)
    groups = {title: parser.add_argument_group(title, text) for title, text in _GROUPS.items()}
    _add_model_flags(groups["model"])
    add_flags(ModelOptions, groups)
    add_flags(ServerOptions, groups)
    add_custom_objects_flag(groups["model"])
    groups["batching"].add_argument(
        "--max-concurrent-batches",
        type=int,
        metavar="N",
        help="batches that run at the same time, for all models (default: one for each replica)",
    )
    groups["operation"].add_argument(
        "--log-requests", metavar="FILE", help="write a sample of requests and answers to this file"
    )
    groups["operation"].add_argument(
        "--sample",
        type=float,
        metavar="FRACTION",
        help="with --log-requests: the fraction of requests to write (default: 0.01)",
    )
    add_config_flag(parser)


def _add_model_flags(group: "argparse._ArgumentGroup") -> None:
    models = group.add_mutually_exclusive_group()
    models.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="a bundle (written by `export`), a SavedModel, an .onnx or a .keras file, or a preset "
        "of a language model (written by `save_to_preset` or transformers); or a folder of these, "
        "named by numbers: the newest is served, also if it is added later; or a URI: "
        "s3://, gs://, az://, https:// (extra `remote`), or hf://org/name@revision (extra `hub`)",
    )
    models.add_argument(
        "--model-config",
        metavar="FILE",
        help="a file that lists several models, each a folder of versions: TF Serving's "
        "--model_config_file, with its version policies and labels",
    )
    group.add_argument(
        "--model-config-poll",
        type=float,
        metavar="SECONDS",
        help="with --model-config: read the file again at this interval, and serve what it lists "
        "then; TF Serving's --model_config_file_poll_wait_seconds (default: 0, it is read once)",
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


def run(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM, Ctrl-C or SIGHUP, then answers the accepted requests and returns.

    Raises:
        KerasDeepSeekError: An argument is wrong, or the model can't be served.
    """
    import logging
    from dataclasses import replace

    from keras_deepseek.inference.engine import ServingEngine
    from keras_deepseek.inference.model_download import fetch_model, is_uri
    from keras_deepseek.inference.process_limits import raise_limit
    from keras_deepseek.inference.server.admin_server import AdminServer
    from keras_deepseek.inference.server.live_line import LiveLine
    from keras_deepseek.inference.server.server import listen, wait_until_stopped
    from keras_deepseek.inference.server.termination import Interruption

    model, engine_arguments = read_model(arguments), read_engine(arguments)
    options = read_servers(arguments)
    if options.grpc_port is not None:  # Before a model is loaded, too.
        check_grpc_packages()
    for port in (options.http_port, options.grpc_port):
        if port is not None:  # A wrong address is reported before a model is loaded.
            listen(options.host, port).close()
    raise_limit()
    engine, admin, poller = None, None, None
    try:
        if options.admin_port is not None:
            admin = AdminServer(options.host, options.admin_port)
            admin.start()
        # A signal stops the loading and the warm-up, too: no request is accepted yet.
        with Interruption(takes_sigterm=True) as interruption:
            if is_uri(model):
                model = fetch_model(model, arguments.cache_dir)
            engine = ServingEngine(model, **engine_arguments)
            if admin is not None:
                admin.engine = engine
            interruption.check()
            with _one_line_errors(engine):
                with _one_line_warnings():
                    # The admin server runs already: `serve` must not start another one.
                    engine.serve(**vars(replace(options, admin_port=None)))
                poller = _follow_config(engine, arguments, model)
                threads = engine_arguments.get("threads", "as the runtime chooses")
                logging.getLogger(__name__).info("The model is ready. CPU threads: %s.", threads)
                # Log lines and a live line would mix on the terminal.
                live_line = None if options.access_log else LiveLine(engine)
                line = _describe(engine, arguments.no_grpc)
                wait_until_stopped(engine.servers, line, interruption, live_line)
    finally:
        if poller is not None:
            poller.stop()
        # Another signal ends the process without waiting for requests in flight.
        if engine is not None:
            engine.close()
        if admin is not None:
            admin.stop()


def read_model(arguments: argparse.Namespace) -> Any:
    """Returns the path or the model config that the flags name."""
    from pathlib import Path

    from keras_deepseek.inference.models.model_config import read_model_config
    from keras_deepseek.inference.models.model_folder import find_versions

    if arguments.model_config_poll is not None:
        if arguments.model_config is None:
            raise InvalidInputError(
                "Received --model-config-poll without --model-config. Add --model-config FILE."
            )
        check_seconds("--model-config-poll", arguments.model_config_poll, or_zero=True)
    if (arguments.path is None) == (arguments.model_config is None):
        received = "both" if arguments.path else "neither"
        raise InvalidInputError(f"Pass PATH or --model-config FILE; received {received} of them.")
    if arguments.path is not None:
        if arguments.model_version is not None and find_versions(Path(arguments.path)):
            raise InvalidInputError(
                f"Received --model-version with {arguments.path!r}, a folder of versions. Remove "
                "it: the names of the folders in it are the versions."
            )
        return arguments.path
    for flag in ("name", "model_version"):
        if getattr(arguments, flag) is not None:
            raise InvalidInputError(
                f"Received --{flag.replace('_', '-')} with --model-config. Remove it: the config "
                "names its models and their versions."
            )
    return read_model_config(arguments.model_config)


def read_engine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of the engine that the flags set, before a model is loaded."""
    if arguments.sample is not None and arguments.log_requests is None:
        raise InvalidInputError(
            "Received --sample without --log-requests. Add --log-requests FILE."
        )
    if arguments.batch_timeout is not None and not arguments.isolated:
        raise InvalidInputError("Received --batch-timeout without --isolated. Add --isolated.")
    options = read_flags(ModelOptions, arguments)
    ModelOptions(**options)  # Its checks come before a download.
    engine_arguments = {
        "name": arguments.name,
        "version": arguments.model_version,
        "max_concurrent_batches": arguments.max_concurrent_batches,
        "log_requests": arguments.log_requests,
        "sample": arguments.sample,
    }
    return options | {name: value for name, value in engine_arguments.items() if value is not None}


def read_servers(arguments: argparse.Namespace) -> ServerOptions:
    """Returns the options of the servers that the flags set, before a model is loaded."""
    if find_spec("uvicorn") is None:
        raise MissingExtraError("uvicorn", "serving", "to serve over HTTP")
    options = ServerOptions(**read_flags(ServerOptions, arguments))
    options.check_ports()
    return options


def _follow_config(
    engine: "ServingEngine", arguments: argparse.Namespace, models: Any
) -> "Poller | None":
    """Starts to read the model config again and again, if the flags ask for that."""
    from keras_deepseek.inference.models.model_config import ModelConfigFile
    from keras_deepseek.inference.models.poller import Poller

    path, seconds = arguments.model_config, arguments.model_config_poll
    if not seconds:
        return None
    file = ModelConfigFile(path, models, engine.repository.replace_models)
    poller = Poller(file.look, seconds, f"the model config {path!r}")
    poller.start()
    return poller


@contextlib.contextmanager
def _one_line_errors(engine: "ServingEngine") -> "Iterator[None]":
    """Context manager that reports a failed warm-up in one line. The traceback goes to the log."""
    import logging

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


def _describe(engine: "ServingEngine", no_grpc: bool) -> str:
    """Returns the line with the URLs, and the missing extra if gRPC was not turned off."""
    from keras_deepseek.inference.server.server import describe_servers

    line = describe_servers(engine, engine.servers)
    if no_grpc or len(engine.servers) > 1:
        return line
    return f"{line}; to serve gRPC: pip install 'keras_deepseek[grpc]'"
