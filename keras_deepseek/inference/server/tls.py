"""The TLS of a server, of the files that an operator has: for HTTP, and the same for gRPC."""

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
    """Returns a context for TLS 1.2 and later, or `None` where there is no certificate.

    Args:
        certificate: The path of a PEM file: the server's certificate, and those that lead from it
            to an authority.
        key: The path of a PEM file with its private key. Defaults to `None`: it stands in the file
            of the certificate.
        client_authority: The path of a PEM file. Only clients with a certificate of one of these
            authorities are served. Defaults to `None`: clients need none.

    Raises:
        InvalidInputError: A file can't be read, or the key is not the certificate's.
    """
    if certificate is None:
        if key is not None or client_authority is not None:
            raise InvalidInputError(
                "A key and an authority for clients serve nothing without a TLS certificate."
            )
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a password of its own, OpenSSL would ask at the terminal for that of a locked key.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise InvalidInputError(
            f"Can't use the certificate {os.fspath(certificate)!r} with the key "
            f"{os.fspath(key or certificate)!r}: {error}. Expected PEM files that belong together, "
            "the key without a password."
        ) from error
    if client_authority is not None:
        try:
            context.load_verify_locations(client_authority)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInputError(
                f"Can't read the authorities of clients of {os.fspath(client_authority)!r}: "
                f"{error}. Expected a PEM file of certificates."
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def make_grpc_credentials(
    certificate: str | os.PathLike[str] | None,
    key: str | os.PathLike[str] | None = None,
    client_authority: str | os.PathLike[str] | None = None,
) -> Any:
    """Returns `grpc.ServerCredentials` of the same files, or `None` where there is no certificate.

    Args:
        certificate: As in `make_server_context`.
        key: As in `make_server_context`. Defaults to `None`.
        client_authority: As in `make_server_context`. Defaults to `None`.

    Raises:
        InvalidInputError: A file can't be read, or the key is not the certificate's.
        MissingExtraError: The package of the extra `grpc` is not installed.
    """
    # gRPC itself would say what is wrong with the files in its log alone.
    if make_server_context(certificate, key, client_authority) is None or certificate is None:
        return None
    try:
        import grpc
    except ImportError as error:
        raise MissingExtraError("grpcio", "grpc", "to serve over gRPC") from error
    pair = (Path(key or certificate).read_bytes(), Path(certificate).read_bytes())
    authority = None if client_authority is None else Path(client_authority).read_bytes()
    return grpc.ssl_server_credentials([pair], authority, authority is not None)
