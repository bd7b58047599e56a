"""The options of a server: each with its check, its documentation and its command-line flags.

`ServingEngine.serve`, the flags of `keras-deepseek serve`, its file and its environment variables
come from here. A new option is a field with an entry in `Args:`, and a name in the keywords.
"""

import argparse
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from keras_deepseek.checks import check_boolean
from keras_deepseek.errors import (
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
    unknown_name_message,
)
from keras_deepseek.inference.arguments import check_host, check_origins, check_port
from keras_deepseek.inference.options import (
    COUNT,
    SWITCH,
    Flag,
    check_options,
    option,
    read_number,
    read_pairs,
    refuse_unknown_options,
)
from keras_deepseek.inference.server.grpc_packages import GRPC_PACKAGES
from keras_deepseek.inference.server.http_limits import HttpLimits
from keras_deepseek.inference.server.tls import make_grpc_credentials, make_server_context
from keras_deepseek.inference.server.tokens import (
    ModelControl,
    ModelControlMode,
    TokenCheck,
    Tokens,
)

if TYPE_CHECKING:
    import ssl

DEFAULT_GRPC_PORT = 8500
"""TF Serving's."""

_PORT: dict[str, Any] = {"check": check_port, "type": int, "metavar": "PORT"}


def _check_limits(_name: str, limits: Any) -> None:
    if not isinstance(limits, HttpLimits):
        raise InvalidInputError(
            "`limits` must be an `HttpLimits`, as in HttpLimits(idle_seconds=10), or None; "
            f"received {limits!r}."
        )


def _read_limits(arguments: argparse.Namespace) -> HttpLimits:
    limits = read_pairs("--limit", arguments.limit)
    limit_names = [item.name for item in fields(HttpLimits)]
    for name in limits:
        if name not in limit_names:
            raise InvalidInputError(unknown_name_message("limit", name, limit_names))
    return HttpLimits(**{name: read_number("--limit", text) for name, text in limits.items()})


def _check_shared_memory(name: str, is_on: Any) -> None:
    check_boolean(name, is_on)
    folder = Path("/dev/shm")  # As in `protocols.shared_memory`, which loads NumPy.
    if is_on and not folder.is_dir():
        raise NotSupportedError(
            f"`shared_memory` needs POSIX shared memory at {folder}, which this machine does not "
            "have: Linux has it. Leave the option out; clients then send values in requests."
        )


def _check_tokens(_name: str, tokens: Any) -> None:
    TokenCheck(tokens)


def _check_context(_name: str, context: Any) -> None:
    import ssl

    if not isinstance(context, ssl.SSLContext):
        raise InvalidInputError(
            "`ssl_context` must be an `ssl.SSLContext`, as `make_server_context` returns it, "
            f"or None; received {context!r}."
        )


def _read_context(arguments: argparse.Namespace) -> "ssl.SSLContext | None":
    for flag, file in (("--tls-key", arguments.tls_key), ("--client-ca", arguments.client_ca)):
        if file is not None and arguments.tls_certificate is None:
            raise InvalidInputError(
                f"Received {flag} without --tls-certificate. Add --tls-certificate FILE."
            )
    return make_server_context(*_tls_files(arguments))


def _read_credentials(arguments: argparse.Namespace) -> Any:
    has_grpc = _read_grpc_port(arguments) is not None
    return make_grpc_credentials(*_tls_files(arguments)) if has_grpc else None


def _tls_files(arguments: argparse.Namespace) -> tuple[str | None, ...]:
    return arguments.tls_certificate, arguments.tls_key, arguments.client_ca


def _read_grpc_port(arguments: argparse.Namespace) -> int | None:
    """Returns the port for gRPC, or `None` if it is turned off or not installed."""
    port: int | None = arguments.grpc_port
    if arguments.no_grpc:
        if port is not None:
            raise InvalidInputError("Received both --grpc-port and --no-grpc. Remove one of them.")
        return None
    packages = GRPC_PACKAGES.items()
    missing = next((package for name, package in packages if find_spec(name) is None), None)
    if missing is None:
        return DEFAULT_GRPC_PORT if port is None else port
    if port is not None:
        raise MissingExtraError(missing, "grpc", "to serve over gRPC")
    return None


@refuse_unknown_options
@dataclass(frozen=True)
class ServerOptions:
    """The options of `ServingEngine.serve`, and of the servers that it makes.

    All but the ports, TLS and `limits` hold for `ServingEngine.asgi_app`, too.

    Args:
        http_port: integer. `0` takes a free one. Defaults to `8501`.
        grpc_port: integer. TF Serving's is 8500. Defaults to `None`: no gRPC. A `GrpcServer` that
            you make yourself then takes 8500.
        host: string. The address to listen at. Defaults to `"127.0.0.1"`: this machine alone.
        tokens: sequence of strings, or a `pathlib.Path` of a file with one in each line. Requests
            must send one of them, as `Authorization: Bearer TOKEN`, over gRPC in the metadata
            `authorization`. Health checks and the page at `/` need none. Defaults to `None`: no
            token is needed.
        ssl_context: `ssl.SSLContext` of a server, for TLS over HTTP (`make_server_context`). If its
            `verify_mode` is `ssl.CERT_REQUIRED`, clients without a trusted certificate are refused.
            Defaults to `None`: no TLS.
        grpc_credentials: `grpc.ServerCredentials`, for TLS over gRPC (`make_grpc_credentials`). TLS
            is for both ports or for none. Defaults to `None`: no TLS.
        max_body_bytes: integer. Larger requests get the status 413, over gRPC RESOURCE_EXHAUSTED,
            also if they are larger only after decompression. Defaults to 64 MiB (`67108864`).
        limits: `HttpLimits`, for both ports. Defaults to `None`: the defaults of `HttpLimits`.
        access_log: boolean. If `True`, each request writes a line of JSON to the log
            `keras_deepseek.inference.access`. Defaults to `False`.
        traces: boolean, or OpenTelemetry's `TracerProvider`. If not `False`, each request is a
            span. `True` takes the provider of the process, or else one that the environment
            variables `OTEL_*` describe. Defaults to `False`.
        model_control: string. `"explicit"` lets clients load, unload and replace models, with a
            token of `management_tokens`. Defaults to `"none"`: these calls are refused.
        management_tokens: As `tokens`, for the calls that load and unload models. They allow
            nothing else. Defaults to `None`.
        shared_memory: boolean. If `True`, clients on this machine may pass tensors of Open
            Inference in POSIX shared memory, which is on Linux. They reach all shared memory of the
            server's user: leave it off where others use the machine. Defaults to `False`.
        cors_origins: sequence of strings, as in `["https://app.example.com"]`. Pages of these
            origins may call models from a browser (CORS), but not load or unload them. `"*"` is
            refused. Defaults to `()`: none.
        admin_port: integer. A port that answers health checks and `/metrics` alone, without TLS
            and without a token, from before the models are loaded to after the servers have
            stopped. `0` takes a free one. Defaults to `None`: there is none.

    Raises:
        InvalidInputError: An option has a wrong value, or needs another one.

    Example:

    >>> options = ServerOptions(http_port=0, tokens=["a-long-random-token"])
    >>> options.http_port, options.host
    (0, '127.0.0.1')
    """

    http_port: int = field(
        default=8501,
        metadata=option(
            "listening", "port for HTTP; 0 takes a free one (default: {default})", **_PORT
        ),
    )
    grpc_port: int | None = field(
        default=None,
        metadata=option(
            "listening",
            "port for gRPC; 0 takes a free one (default: 8500, if the extra `grpc` is installed)",
            Flag("--no-grpc", "listening", "serve over HTTP only", action="store_true"),
            read=_read_grpc_port,
            **_PORT,
        ),
    )
    _: KW_ONLY
    host: str = field(
        default="127.0.0.1",
        metadata=option(
            "listening",
            "address to listen at; 0.0.0.0: all of this machine (default: {default}, which only "
            "this machine reaches)",
            check=check_host,
            metavar="ADDRESS",
        ),
    )
    tokens: Tokens | None = field(
        default=None,
        metadata=option(
            "access",
            "refuse requests without a token of this file, which has one in each line; clients "
            "send the header Authorization: Bearer TOKEN",
            flag="--token-file",
            check=_check_tokens,
            type=Path,
            metavar="FILE",
        ),
    )
    ssl_context: "ssl.SSLContext | None" = field(
        default=None,
        metadata=option(
            "access",
            "turn on TLS with this PEM file: the server's certificate, and those that lead from it "
            "to an authority",
            Flag(
                "--tls-key",
                "access",
                "with --tls-certificate: a PEM file with its private key, without a password "
                "(default: the key is in the file of the certificate)",
                metavar="FILE",
            ),
            Flag(
                "--client-ca",
                "access",
                "with --tls-certificate: refuse clients without a certificate of an authority in "
                "this PEM file",
                metavar="FILE",
            ),
            flag="--tls-certificate",
            check=_check_context,
            read=_read_context,
            metavar="FILE",
        ),
    )
    grpc_credentials: Any = field(default=None, metadata=option(read=_read_credentials))
    max_body_bytes: int = field(
        default=64 * 2**20,
        metadata=option(
            "listening",
            "refuse larger requests (default: 64 MiB); after decompression 16 MiB at most",
            **COUNT,
        ),
    )
    limits: HttpLimits | None = field(
        default=None,
        metadata=option(
            "listening",
            "a limit for connections, a field of HttpLimits, as in idle_seconds=10 or "
            "grace_seconds=60; can be repeated",
            flag="--limit",
            check=_check_limits,
            read=_read_limits,
            action="append",
            default=[],
            metavar="NAME=NUMBER",
        ),
    )
    access_log: bool = field(
        default=False,
        metadata=option("operation", "write a line of JSON for each request to stderr", **SWITCH),
    )
    traces: Any = field(
        default=False,
        metadata=option(
            "operation",
            "send an OpenTelemetry span for each request, as OTEL_* says (extra `telemetry`)",
            action="store_true",
        ),
    )
    model_control: ModelControlMode = field(
        default="none",
        metadata=option(
            "access",
            "explicit: clients may load and unload models, with a token of "
            "--management-token-file (default: {default})",
            choices=("none", "explicit"),
        ),
    )
    management_tokens: Tokens | None = field(
        default=None,
        metadata=option(
            "access",
            "with --model-control explicit: the tokens for loading and unloading models, one in "
            "each line",
            flag="--management-token-file",
            type=Path,
            metavar="FILE",
        ),
    )
    shared_memory: bool = field(
        default=False,
        metadata=option(
            "access",
            "let clients on this machine pass tensors of Open Inference in POSIX shared memory",
            check=_check_shared_memory,
            action="store_true",
        ),
    )
    cors_origins: Sequence[str] = field(
        default=(),
        metadata=option(
            "access",
            "let pages of this origin, as https://app.example.com, call models from a browser; can "
            "be repeated",
            flag="--cors-origin",
            check=check_origins,
            action="append",
            default=[],
            metavar="ORIGIN",
        ),
    )
    admin_port: int | None = field(
        default=None,
        metadata=option(
            "listening",
            "port for health checks and /metrics alone, without TLS and tokens; open before the "
            "model is loaded; 0 takes a free one (default: none)",
            **_PORT,
        ),
    )

    def __post_init__(self) -> None:
        check_options(self)
        ModelControl(self.model_control, self.management_tokens)

    def check_ports(self) -> None:
        """Raises an error if the options of the ports do not fit together."""
        if self.grpc_port is None and self.grpc_credentials is not None:
            raise InvalidInputError(
                "Received `grpc_credentials` without `grpc_port`. Give a port, as in "
                "grpc_port=8500."
            )
        has_grpc = self.grpc_port is not None
        if has_grpc and (self.ssl_context is None) != (self.grpc_credentials is None):
            raise InvalidInputError(
                "Received TLS for one port only. Give both `ssl_context` and `grpc_credentials`, "
                "made from the same files by `make_server_context` and `make_grpc_credentials`."
            )
        names: dict[int, str] = {}
        for name in ("http_port", "grpc_port", "admin_port"):
            port = getattr(self, name)
            if port and port in names:
                raise InvalidInputError(
                    f"Received port {port} for both `{names[port]}` and `{name}`. Give them "
                    "different ports."
                )
            names[port] = name


class ApplicationKeywords(TypedDict, total=False):
    """The keywords of `ServingEngine.asgi_app`, fields of `ServerOptions`."""

    tokens: Tokens | None
    max_body_bytes: int
    access_log: bool
    traces: Any
    model_control: ModelControlMode
    management_tokens: Tokens | None
    shared_memory: bool
    cors_origins: Sequence[str]


class ServerKeywords(ApplicationKeywords, total=False):
    """The keywords of `ServingEngine.serve`, fields of `ServerOptions`."""

    host: str
    ssl_context: "ssl.SSLContext | None"
    grpc_credentials: Any
    limits: HttpLimits | None
    admin_port: int | None
