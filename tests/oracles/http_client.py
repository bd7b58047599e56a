"""A client of TF Serving's REST that may send what no client would, over a socket of its own."""

import json
import socket
import urllib.request


def ask(server, value):
    body = json.dumps({"instances": [[value, value]]}).encode()
    url = f"{server.url}/v1/models/model:predict"
    with urllib.request.urlopen(url, data=body, timeout=60) as response:
        return json.load(response)["predictions"][0][0]


def predict_request(value, *headers):
    body = b'{"instances": [[%d, %d]]}' % (value, value)
    lines = [b"POST /v1/models/model:predict HTTP/1.1", b"Host: x", *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body)]) + b"\r\n\r\n" + body


def connect(server):
    return socket.create_connection((server.host, server.port), timeout=60)


def read_all(connection):
    """Returns what comes until the server closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))
