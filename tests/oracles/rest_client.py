"""A client that keeps one connection open, as the clients of a server do."""

import http.client
import json
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    status: int
    body: bytes
    headers: Any

    @property
    def content(self) -> Any:
        return json.loads(self.body)


class RestClient:
    def __init__(self, server: Any, **headers: str) -> None:
        self._headers = headers
        self._connection = http.client.HTTPConnection(server.host, server.port, timeout=60)

    def ask(self, method: str, path: str, body: Any = None, headers: Any = None) -> Answer:
        if isinstance(body, dict | list):
            body = json.dumps(body)
        self._connection.request(method, path, body, headers or self._headers)
        response = self._connection.getresponse()
        return Answer(response.status, response.read(), response.headers)

    def close(self) -> None:
        self._connection.close()
