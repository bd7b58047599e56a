import json
import ssl
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from keras_deepseek.artifacts import InvalidInputError, MissingExtraError
from keras_deepseek.inference import GrpcServer, ServingEngine
from keras_deepseek.inference.server.tls import (
    make_grpc_credentials,
    make_server_context,
)
from tests.inference.conftest import service_of
from tests.oracles.http_client import connect, read_all


def test_there_is_no_context_without_a_certificate():
    assert make_server_context(None) is None
    with pytest.raises(InvalidInputError, match="without `certificate`"):
        make_server_context(None, "server.key")
    with pytest.raises(InvalidInputError, match="without `certificate`"):
        make_server_context(None, client_authority="ca.pem")


def test_clients_need_a_certificate_where_an_authority_is_given(certificates):
    files = certificates / "server.pem", certificates / "server.key"
    assert make_server_context(*files).verify_mode == ssl.CERT_NONE
    context = make_server_context(*files, certificates / "ca.pem")
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_files_that_do_not_fit_are_refused(certificates, tmp_path):
    good = certificates / "server.pem", certificates / "server.key"
    with pytest.raises(InvalidInputError, match="Can't use the certificate"):
        make_server_context(good[0], certificates / "client.key")
    with pytest.raises(InvalidInputError, match=r"missing\.pem"):
        make_server_context(tmp_path / "missing.pem")
    (tmp_path / "bad.pem").write_text("nothing")
    with pytest.raises(InvalidInputError, match="authorities for clients"):
        make_server_context(*good, tmp_path / "bad.pem")


def test_a_key_with_a_password_is_refused_in_place_of_asking_for_it(certificates, tmp_path):
    locked = tmp_path / "locked.key"
    call = ["openssl", "pkey", "-in", certificates / "server.key", "-aes256", "-passout", "pass:x"]
    subprocess.run([*call, "-out", locked], check=True, capture_output=True)
    with pytest.raises(InvalidInputError, match="without a password"):
        make_server_context(certificates / "server.pem", locked)


def test_grpc_takes_a_key_that_stands_in_the_file_of_its_certificate(
    certificates, tmp_path, doubler
):
    grpc = pytest.importorskip("grpc")
    both = tmp_path / "both.pem"
    both.write_text("".join((certificates / f"server.{x}").read_text() for x in ("key", "pem")))
    with ServingEngine(doubler, warm_up=False) as engine:
        server = GrpcServer(service_of(engine, grpc_credentials=make_grpc_credentials(both)))
        server.start()
        credentials = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
        with grpc.secure_channel(server.target, credentials) as channel:
            call = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert call(b"", timeout=60) == b"\x08\x01"
        server.stop()


def test_grpc_has_no_credentials_without_a_certificate_or_without_grpc(certificates, monkeypatch):
    assert make_grpc_credentials(None) is None
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[grpc\]"):
        make_grpc_credentials(certificates / "server.pem", certificates / "server.key")


def client_context(certificates, name=None):
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    if name is not None:
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return context


def ask_health(server, context):
    with urllib.request.urlopen(f"{server.url}/healthz", timeout=60, context=context) as response:
        return json.load(response)["status"]


def test_tls_is_spoken_where_a_context_is_given(serve_http, server_context, certificates):
    server = serve_http(server_context)
    assert server.url.startswith("https://")
    assert ask_health(server, client_context(certificates)) == "ready"
    with connect(server) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"ready" not in read_all(plain)
    assert ask_health(server, client_context(certificates)) == "ready"


def test_a_malformed_request_over_tls_is_answered_and_the_connection_closed(
    serve_http, server_context, certificates
):
    server = serve_http(server_context, linger_seconds=0.1)
    context = client_context(certificates)
    with context.wrap_socket(connect(server), server_hostname="127.0.0.1") as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 Bad Request")
        assert b"error" in read_all(connection)


def test_a_client_must_prove_who_it_is_where_the_context_asks_for_it(
    serve_http, server_context, certificates
):
    server_context.verify_mode = ssl.CERT_REQUIRED
    server = serve_http(server_context)
    with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
        ask_health(server, client_context(certificates))
    assert ask_health(server, client_context(certificates, "client")) == "ready"
