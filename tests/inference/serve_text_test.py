"""A language model served by the command, in a process of its own."""

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from tests.oracles.language_model_preset import write_language_model

MAIN = "import sys; from keras_deepseek.cli import main; sys.exit(main(sys.argv[1:]))"
CHAT = {
    "model": "deepseek",
    "messages": [{"role": "user", "content": "The quick brown fox"}],
    "max_tokens": 100,
    "temperature": 0,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets") / "deepseek"
    write_language_model(folder)
    return folder


@contextlib.contextmanager
def serving(preset, *flags):
    """Yields the process and the line in which it says where it serves."""
    pytest.importorskip("uvicorn")
    call = [sys.executable, "-c", MAIN, "serve", str(preset), "--name", "deepseek", "--no-grpc"]
    call += ["--http-port", "0", "--max-batch-size", "2", "--max-length", "256", *flags]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        errors = []
        reader = threading.Thread(target=lambda: errors.extend(child.stderr))
        reader.start()  # Nobody else empties the pipe.
        try:
            line = child.stdout.readline()
            assert line.startswith("Serving 'deepseek' at "), "".join(errors)
            yield child, line.strip()
        finally:
            child.kill()
            reader.join()


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as response:
        return json.load(response)


@contextlib.contextmanager
def streaming(url, **settings):
    """Yields the response of a chat that has begun to come."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    with contextlib.closing(connection):
        body = json.dumps(CHAT | {"stream": True} | settings)
        connection.request("POST", "/v1/chat/completions", body)
        with connection.getresponse() as response:
            assert response.readline().startswith(b"data: ")
            yield response


def read_events(response):
    texts = [line.removeprefix(b"data: ").strip() for line in response.readlines()]
    return [text if text == b"[DONE]" else json.loads(text) for text in texts if text]


def test_a_preset_is_served_until_sigterm_and_a_stream_is_answered_to_its_end(preset):
    with serving(preset) as (child, line):
        url = line.removeprefix("Serving 'deepseek' at ").split("/v1/")[0]
        assert line == f"Serving 'deepseek' at {url}/v1/chat/completions; to chat: {url}/chat"
        status = ask(f"{url}/v1/models/deepseek")["model_version_status"]
        assert [version["state"] for version in status] == ["AVAILABLE"]
        metadata = ask(f"{url}/v2/models/deepseek")
        assert [tensor["name"] for tensor in metadata["outputs"]] == ["text_output"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(f"{url}/v1/models/deepseek:predict", {"instances": [[1]]})
        with refused.value as answer:
            assert answer.code == 400
            assert "/v1/chat/completions" in json.load(answer)["error"]
        whole = ask(f"{url}/v1/chat/completions", CHAT)["choices"][0]["message"]["content"]
        with streaming(url) as response:
            child.send_signal(signal.SIGTERM)
            *chunks, end = read_events(response)
        assert end == b"[DONE]"
        choices = [chunk["choices"][0] for chunk in chunks]
        assert "".join(choice["delta"].get("content", "") for choice in choices) == whole
        assert choices[-1]["finish_reason"] == "length"
        assert child.wait(60) == 0


@pytest.mark.nightly
def test_a_stream_that_takes_longer_than_the_grace_time_ends_with_it(preset):
    with serving(preset, "--limit", "grace_seconds=0.5", "--max-length", "1024") as (child, line):
        url = line.removeprefix("Serving 'deepseek' at ").split("/v1/")[0]
        with streaming(url, max_tokens=900) as response:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(http.client.IncompleteRead):
                assert b"[DONE]" not in read_events(response)
        assert child.wait(60) == 0


@pytest.mark.nightly
def test_a_wrong_option_is_told_in_one_line(preset):
    call = [sys.executable, "-c", MAIN, "serve", str(preset), "--cache-entries", "3"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "cache_entries" in line]
    assert "Received cache_entries=3 for 'model', which is a language model" in line
