"""Requests that want far too much of a language model, and clients that read nothing.

Meanwhile the memory of the server stays bounded, and it answers whether it lives within a second.
Not part of a plain `tox`: `tox -e text-clients`.
"""

import contextlib
import http.client
import json
import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from integration_tests.text_model import CONTINUATION, MAX_LENGTH, NAME, PROMPT
from tests.oracles.served_process import ServedProcess

pytest.importorskip("uvicorn")

pytestmark = pytest.mark.timeout(1800)

SECONDS = 300
MOST_MEGABYTES = 150
"""What an attack may cost: its own bytes, parsed, and the tokens of one prompt."""

NUM_SLOW, NUM_HUNG_UP = 24, 1000
LONGEST = MAX_LENGTH - 64
ATTACKER = "127.0.0.2"
"""Another address is another client, and clients take turns."""
REFUSED = (400, 413)
"""Wrong, or larger than any request that fits."""


@pytest.fixture(scope="module")
def server(text_preset):
    flags = ["--name", NAME, "--max-length", str(MAX_LENGTH), "--max-batch-size", "8"]
    ports = ["--http-port", "0", "--no-grpc"]
    command = [sys.executable, "-m", "keras_deepseek", "serve", str(text_preset), *flags, *ports]
    with ServedProcess(*command, health="/health") as server:
        # The first answers make what later ones share.
        for _ in range(20):
            assert complete(server) == CONTINUATION
        yield server


@pytest.fixture(autouse=True)
def watch(server, request):
    """Holds each attack to the memory, the latency, and an idle engine at its end."""
    server.latencies.clear()
    server.megabytes = server._peak()
    yield
    assert complete(server) == CONTINUATION
    milliseconds, megabytes = server.report(request.node.name)
    assert megabytes < MOST_MEGABYTES
    assert milliseconds < 1000


def ask(server, path, content, timeout=SECONDS):
    """Returns the status and the JSON of an answer."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=timeout)
    with contextlib.closing(connection):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def complete(server, **options):
    request = {"prompt": PROMPT, "temperature": 0, "max_tokens": 64, **options}
    status, answer = ask(server, "/v1/completions", request)
    assert status == 200, answer
    return answer["choices"][0]["text"]


def chat(content):
    return {"messages": [{"role": "user", "content": content}]}


MILLION = 10**6
LONG_TEXT = "One, two, " * (MILLION // 2)
ATTACKS = {
    "a million tokens of text": ("/v1/completions", "prompt", {"prompt": LONG_TEXT}),
    "a million tokens of a chat": ("/v1/chat/completions", "messages", chat(LONG_TEXT)),
    "a million token ids": ("/v1/completions", "prompt", {"prompt": [7] * MILLION}),
    "a million prompts": ("/v1/completions", "prompt", {"prompt": ["a"] * MILLION}),
    "a million messages": (
        "/v1/chat/completions",
        "messages",
        {"messages": chat("a")["messages"] * MILLION},
    ),
    "a text without a break": ("/v1/completions", "prompt", {"prompt": "a" * 4 * MILLION}),
    "n": ("/v1/completions", "n", {"prompt": "a", "n": 10**9}),
    "max_tokens": ("/v1/completions", "max_tokens", {"prompt": "a", "max_tokens": 10**9}),
    "max_completion_tokens": (
        "/v1/chat/completions",
        "max_completion_tokens",
        {**chat("a"), "max_completion_tokens": 10**9},
    ),
    "10,000 stop strings": (
        "/v1/completions",
        "stop",
        {"prompt": "a", "stop": [f"stop {number}" for number in range(10_000)]},
    ),
    "one long stop string": ("/v1/completions", "stop", {"prompt": "a", "stop": "ab" * MILLION}),
    "a bias of each token": (
        "/v1/completions",
        "logit_bias",
        {"prompt": "a", "logit_bias": {str(number): 1 for number in range(129_280)}},
    ),
    "log-probabilities": ("/v1/completions", "logprobs", {"prompt": "a", "logprobs": 10**9}),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_far_too_much_is_refused_by_its_field(server, name):
    path, parameter, content = ATTACKS[name]
    body = json.dumps(content).encode()
    server.latencies.clear()  # To write it has held up the thread that asks.
    for _ in range(5):
        status, answer = ask(server, path, body)
        assert status in REFUSED, answer
        assert status == 413 or answer["error"]["param"] == parameter, answer


def test_a_million_tokens_are_refused_while_others_are_answered(server):
    body = json.dumps({"prompt": LONG_TEXT}).encode()
    server.latencies.clear()
    with ThreadPoolExecutor(12) as pool:
        attacks = [pool.submit(ask, server, "/v1/completions", body) for _ in range(16)]
        answers = [pool.submit(complete, server) for _ in range(16)]
        assert {attack.result()[0] for attack in attacks} <= {400, 429, 503}
        assert {answer.result() for answer in answers} == {CONTINUATION}


def test_what_is_just_allowed_is_answered(server):
    stops = [f"{'x' * 8}{number}" for number in range(1024)]
    assert complete(server, stop=stops) == CONTINUATION
    biases = {str(number): 1 for number in range(512)}
    complete(server, logit_bias=biases, max_tokens=8)
    complete(server, n=128, max_tokens=2, logprobs=20)


def open_stream(server, **options):
    """Returns a socket that has asked for a long stream."""
    content = {
        "prompt": PROMPT,
        "stream": True,
        "max_tokens": LONGEST,
        "ignore_eos": True,
        "logprobs": 20,
        **options,
    }
    body = json.dumps(content).encode()
    client = socket.socket()
    client.bind((ATTACKER, 0))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(SECONDS)
    client.connect((server.host, server.port))
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    return client


def test_those_who_read_nothing_of_their_streams_hold_up_nobody(server):
    with contextlib.ExitStack() as stack:
        for _ in range(NUM_SLOW):
            stack.enter_context(contextlib.closing(open_stream(server)))
        for _ in range(2):
            assert complete(server) == CONTINUATION


def test_a_thousand_streams_are_hung_up(server):
    def hang_up(number):
        with contextlib.closing(open_stream(server)) as client:
            if number % 2:
                client.recv(64)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(hang_up, range(NUM_HUNG_UP)))
    assert complete(server) == CONTINUATION
    running = read_metric(server, "keras_deepseek_text_requests_running")
    assert running == 0


def read_metric(server, name):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}\S* (\S+)$", text, re.MULTILINE))
