"""Reads and checks the arguments of `keras-deepseek serve`, before a model is loaded.

`command` declares the arguments, and passes the settings to a `ServingEngine`.
"""

import argparse
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError, MissingExtraError, unknown_name_message
from keras_deepseek.inference.arguments import check_addresses
from keras_deepseek.inference.batching.padding import Padding
from keras_deepseek.inference.cpu_limit import find_cpu_limit
from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.models.model_config import read_model_config
from keras_deepseek.inference.models.model_folder import find_versions
from keras_deepseek.inference.server.model_control import ModelControl
from keras_deepseek.inference.server.tls import (
    make_grpc_credentials,
    make_server_context,
)
from keras_deepseek.inference.server.tokens import TokenCheck

DEFAULT_GRPC_PORT = 8500


@dataclass(frozen=True)
class ServeSettings:
    """The settings of the engine and of its servers.

    `of_engine` are the engine's other arguments, `of_servers` those of `ServingEngine.serve`.
    """

    model: Any
    of_engine: dict[str, Any]
    of_servers: dict[str, Any]


def read_settings(arguments: argparse.Namespace) -> ServeSettings:
    """Reads the settings of the engine and its servers from command-line arguments.

    It loads no framework.
    """
    return ServeSettings(_read_model(arguments), _read_engine(arguments), _read_servers(arguments))


def _read_model(arguments: argparse.Namespace) -> Any:
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


def _read_engine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the engine's arguments from the command line. The engine itself checks them."""
    if arguments.sample is not None and arguments.log_requests is None:
        raise InvalidInputError(
            "Received --sample without --log-requests. Add --log-requests FILE."
        )
    if arguments.batch_timeout is not None and not arguments.isolated:
        raise InvalidInputError("Received --batch-timeout without --isolated. Add --isolated.")
    if arguments.max_wait is not None and arguments.batch_size in (None, "dynamic"):
        raise InvalidInputError(
            "Received --max-wait without a fixed batch size. Add --batch-size N, or remove "
            "--max-wait: dynamic batches choose how long to wait."
        )
    options = {
        "name": arguments.name,
        "version": arguments.model_version,
        "batch_size": arguments.batch_size and _number_or_word(arguments.batch_size),
        "max_batch_size": arguments.max_batch_size,
        "max_wait": arguments.max_wait,
        "max_queue_rows": arguments.max_queue_rows,
        "target_latency": arguments.target_latency,
        "replicas": arguments.replicas,
        "isolated": arguments.isolated,
        "batch_timeout": arguments.batch_timeout,
        "padding": _read_padding(arguments),
        "warm_up": not arguments.no_warm_up,
        "cache_entries": arguments.cache_entries,
        "custom_objects_from": tuple(arguments.custom_objects_from),
        "threads": _count_threads(arguments),
        "max_concurrent_batches": arguments.max_concurrent_batches,
        "log_requests": arguments.log_requests,
        "sample": arguments.sample,
    }
    return {name: value for name, value in options.items() if value is not None}


def _count_threads(arguments: argparse.Namespace) -> int | None:
    """Returns the threads of a replica; `None`, the runtime's choice, without a limit of CPUs."""
    if arguments.threads is not None:
        return check_integer("--threads", arguments.threads)
    limit = find_cpu_limit()
    return None if limit >= (os.cpu_count() or 1) else max(1, limit // (arguments.replicas or 1))


def _read_padding(arguments: argparse.Namespace) -> Padding | None:
    values, masks = arguments.pad_value, arguments.pad_mask
    if arguments.pad_lengths is None:
        if values or masks or arguments.pad_output:
            raise InvalidInputError(
                "Received --pad-value, --pad-mask or --pad-output without --pad-lengths. Add "
                "--pad-lengths, as in --pad-lengths 16,32,64."
            )
        return None
    if not masks:
        raise InvalidInputError(
            "Received --pad-lengths without --pad-mask. Add --pad-mask MASK=INPUT for an input "
            "that is a mask, or --pad-mask by_value if the model recognizes padding by its value."
        )
    return Padding(
        masks="by_value" if masks == ["by_value"] else _read_pairs("--pad-mask", masks),
        lengths=[_read_number("--pad-lengths", text) for text in arguments.pad_lengths.split(",")],
        values={
            name: _read_number("--pad-value", text)
            for name, text in _read_pairs("--pad-value", values).items()
        },
        outputs=_read_pairs("--pad-output", arguments.pad_output),
    )


def _read_servers(arguments: argparse.Namespace) -> dict[str, Any]:
    if find_spec("uvicorn") is None:
        raise MissingExtraError("uvicorn", "serving", "to serve over HTTP")
    grpc_port = _grpc_port(arguments)
    check_addresses(arguments.host, arguments.http_port, grpc_port, arguments.admin_port)
    check_integer("--max-body-bytes", arguments.max_body_bytes)
    tokens = None if arguments.token_file is None else Path(arguments.token_file)
    if tokens is not None:
        TokenCheck(tokens)
    management_file = arguments.management_token_file
    management_tokens = None if management_file is None else Path(management_file)
    ModelControl(arguments.model_control, management_tokens)
    for flag, file in (("--tls-key", arguments.tls_key), ("--client-ca", arguments.client_ca)):
        if file is not None and arguments.tls_certificate is None:
            raise InvalidInputError(
                f"Received {flag} without --tls-certificate. Add --tls-certificate FILE."
            )
    of_tls = (arguments.tls_certificate, arguments.tls_key, arguments.client_ca)
    return {
        "host": arguments.host,
        "http_port": arguments.http_port,
        "grpc_port": grpc_port,
        "tokens": tokens,
        "ssl_context": make_server_context(*of_tls),
        "grpc_credentials": None if grpc_port is None else make_grpc_credentials(*of_tls),
        "max_body_bytes": arguments.max_body_bytes,
        "limits": _read_limits(arguments.limit),
        "access_log": arguments.access_log,
        "traces": arguments.traces,
        "model_control": arguments.model_control,
        "management_tokens": management_tokens,
    }


def _grpc_port(arguments: argparse.Namespace) -> int | None:
    """Returns the port for gRPC, or `None` if it is turned off or not installed."""
    port: int | None = arguments.grpc_port
    if arguments.no_grpc:
        if port is not None:
            raise InvalidInputError("Received both --grpc-port and --no-grpc. Remove one of them.")
        return None
    # `find_spec` of a name with a dot needs the parent package.
    needed = ("grpc", "grpc_health", "grpc_reflection", "google", "google.protobuf")
    if all(find_spec(name) for name in needed):
        return DEFAULT_GRPC_PORT if port is None else port
    if port is not None:
        raise MissingExtraError("grpcio", "grpc", "to serve over gRPC")
    return None


def _read_limits(pairs: Iterable[str]) -> HttpLimits:
    limits = _read_pairs("--limit", pairs)
    limit_names = [field.name for field in fields(HttpLimits)]
    for name in limits:
        if name not in limit_names:
            raise InvalidInputError(unknown_name_message("limit", name, limit_names))
    return HttpLimits(**{name: _read_number("--limit", text) for name, text in limits.items()})


def _read_pairs(flag: str, pairs: Iterable[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not (name and sign and value) or name in values:
            raise InvalidInputError(
                f"Received {flag} {pair!r}. Expected NAME=VALUE, with each name once."
            )
        values[name] = value
    return values


def _read_number(flag: str, text: str) -> Any:
    """Parses a number as an integer if possible, else as a float."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise InvalidInputError(f"Received {text!r} in {flag}. Expected a number.")


def _number_or_word(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
