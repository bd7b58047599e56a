"""TLS for the HTTP server and the gRPC server, from the same PEM files."""

import os
import ssl
from pathlib import Path
from typing import Any

from keras_deepseek.errors import InvalidInputError, MissingExtraError


def make_server_context(
    certificate: str | os.PathLike[str] | None,
    key: str | os.PathLike[str] | None = None,
    client_authority: str | os.PathLike[str] | None = None,
) -> ssl.SSLContext | None:
    """Returns a context for TLS 1.2 and later, or `None` if there is no certificate.

    Args:
        certificate: The path of a PEM file: the server's certificate, and the intermediate
            certificates that lead to an authority.
        key: The path of a PEM file with its private key. Defaults to `None`: the key is in the file
            of the certificate.
        client_authority: The path of a PEM file of authorities. Only clients with a certificate of
            one of them are served. Defaults to `None`: clients need no certificate.

    Raises:
        InvalidInputError: A file can't be read, or the key does not belong to the certificate.

    Example:

    >>> from keras_deepseek.inference import make_server_context
    >>> make_server_context("server.pem", "server.key", "clients.pem")  # doctest: +SKIP
    <ssl.SSLContext object at ...>
    """
    if certificate is None:
        if key is not None or client_authority is not None:
            raise InvalidInputError(
                "Received `key` or `client_authority` without `certificate`. Give the path of the "
                "server's certificate, too."
            )
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # For a locked key without a password here, OpenSSL would ask at the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise InvalidInputError(
            f"Can't use the certificate {os.fspath(certificate)!r} with the key "
            f"{os.fspath(key or certificate)!r}: {error}. Expected PEM files that belong together, "
            "and a key without a password."
        ) from error
    if client_authority is not None:
        try:
            context.load_verify_locations(client_authority)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInputError(
                f"Can't read the authorities for clients from {os.fspath(client_authority)!r}: "
                f"{error}. Expected a PEM file of certificates."
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def make_grpc_credentials(
    certificate: str | os.PathLike[str] | None,
    key: str | os.PathLike[str] | None = None,
    client_authority: str | os.PathLike[str] | None = None,
) -> Any:
    """Returns `grpc.ServerCredentials`, or `None` if there is no certificate.

    The files are those of `make_server_context`.

    Args:
        certificate: As in `make_server_context`.
        key: As in `make_server_context`. Defaults to `None`.
        client_authority: As in `make_server_context`. Defaults to `None`.

    Raises:
        InvalidInputError: A file can't be read, or the key does not belong to the certificate.
        MissingExtraError: The package of the extra `grpc` is not installed.

    Example:

    >>> from keras_deepseek.inference import make_grpc_credentials
    >>> make_grpc_credentials("server.pem", "server.key", "clients.pem")  # doctest: +SKIP
    <grpc.ServerCredentials object at ...>
    """
    # gRPC itself would report faults of the files in its log alone.
    if make_server_context(certificate, key, client_authority) is None or certificate is None:
        return None
    try:
        import grpc
    except ImportError as error:
        raise MissingExtraError("grpcio", "grpc", "to serve over gRPC") from error
    pair = (Path(key or certificate).read_bytes(), Path(certificate).read_bytes())
    authority = None if client_authority is None else Path(client_authority).read_bytes()
    return grpc.ssl_server_credentials([pair], authority, authority is not None)
