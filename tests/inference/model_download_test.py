import contextlib
import errno
import http.server
import json
import logging
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections import namedtuple
from pathlib import Path

import pytest

from keras_deepseek.artifacts import (
    BundleError,
    InvalidInputError,
    Manifest,
    MissingExtraError,
    NotSupportedError,
    Signature,
    TensorSpec,
    Verification,
)
from keras_deepseek.artifacts.bundle import Bundle, publish_bundle
from keras_deepseek.artifacts.staging_folder import staging_folder
from keras_deepseek.inference import ServingEngine, fetch_model, model_download
from keras_deepseek.inference.model_download import is_uri

SIZE = 3 * 2**20


class Site(http.server.ThreadingHTTPServer):
    """A web server of a folder. It can cut a body off, and answers as the hub does under `/api`."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.folder = folder
        self.requests: list[str] = []
        self.cut_after = SIZE * 10
        self.is_silent = False
        self.has_stalled = threading.Event()
        self.goes_on = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, _, _ = self.path.partition("?")
        if path.startswith("/api/models/"):
            files = [path for path in self.server.folder.rglob("*") if path.is_file()]
            siblings = [
                {
                    "rfilename": str(file.relative_to(self.server.folder)),
                    "size": file.stat().st_size,
                }
                for file in files
            ]
            content = {"id": "org/name", "sha": "c" * 40, "siblings": siblings}
            return self.answer(200, json.dumps(content).encode())
        _, sign, name = path.partition("/resolve/" + "c" * 40)
        file = self.server.folder / (name if sign else path).lstrip("/")
        if self.command == "GET":
            self.server.requests.append(file.name)
        if not file.is_file():
            return self.answer(404, b"nothing here")
        data = file.read_bytes()
        return self.answer(200, data)

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.end_headers()
        if self.command == "GET":
            if self.server.is_silent and len(body) == SIZE:
                self.server.has_stalled.set()
                self.server.goes_on.wait(60)
            with contextlib.suppress(BrokenPipeError):  # The client has given up.
                self.wfile.write(body[: self.server.cut_after])
            self.close_connection = len(body) > self.server.cut_after

    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path):
    """A web server with a bundle at `/digits/1`, of which one file is 3 MiB."""
    pytest.importorskip("obstore")
    write_bundle(tmp_path / "site/digits/1")
    with Site(tmp_path / "site") as site:
        thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        site.shutdown()
        thread.join()


@pytest.fixture
def few_retries(monkeypatch):
    monkeypatch.setattr(model_download, "_RETRIES", {"max_retries": 0})


def write_bundle(path, size=SIZE):
    tensor = TensorSpec("x", (None, 2), "float32")
    with staging_folder(path) as folder:
        (folder / "weights").mkdir()
        (folder / "weights/data.bin").write_bytes(os.urandom(size))
        (folder / "model.onnx").write_bytes(b"a graph")
        manifest = Manifest(
            name="digits",
            format="onnx",
            entry="model.onnx",
            signature=Signature(inputs=(tensor,), outputs=(tensor,)),
            precision="float32",
            route="a test",
            versions={},
            created="2026-01-01T00:00:00Z",
            verification=Verification("unverified", "a test"),
        )
        publish_bundle(folder, path, manifest)


def test_a_bundle_is_downloaded_once_and_again_when_it_changes(site, tmp_path, caplog):
    uri, cache = f"{site.url}/digits/1/", tmp_path / "cache"
    with caplog.at_level(logging.INFO):
        path = fetch_model(uri, cache)
    messages = [record.getMessage() for record in caplog.records]
    assert "2 files, 3,145,735 bytes" in messages[0]
    assert messages[-1].endswith("digits/1: 100 %.")
    original = site.folder / "digits/1/weights/data.bin"
    assert (Bundle.open(path).path / "weights/data.bin").read_bytes() == original.read_bytes()
    site.requests.clear()
    assert fetch_model(uri, cache) == path
    assert site.requests == ["bundle.json"]
    shutil.rmtree(site.folder / "digits/1")
    write_bundle(site.folder / "digits/1")
    assert fetch_model(uri, cache) != path
    assert Bundle.open(path)


def test_an_authority_of_one_s_own_vouches_for_a_server(
    site, few_retries, tmp_path, certificates, monkeypatch
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    site.socket = context.wrap_socket(site.socket, server_side=True)
    monkeypatch.setattr(site, "handle_error", lambda *_: None)  # The client ends the handshake.
    uri = f"{site.url.replace('http', 'https')}/digits/1"
    with pytest.raises(InvalidInputError, match="digits/1 can't be read"):
        fetch_model(uri, tmp_path / "cache")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    assert Bundle.open(fetch_model(uri, tmp_path / "cache"))


def test_a_bundle_that_was_altered_in_the_cache_is_downloaded_again(site, tmp_path):
    path = fetch_model(f"{site.url}/digits/1", tmp_path / "cache")
    (path / "model.onnx").write_bytes(b"another")
    assert fetch_model(f"{site.url}/digits/1", tmp_path / "cache") == path
    assert (path / "model.onnx").read_bytes() == b"a graph"


def test_an_interrupted_download_leaves_no_model_and_keeps_its_whole_files(
    site, few_retries, tmp_path
):
    uri, cache = f"{site.url}/digits/1", tmp_path / "cache"
    site.cut_after = SIZE // 2
    with pytest.raises(InvalidInputError, match=r"digits/1 can't be read: \w+: .*\.$"):
        fetch_model(uri, cache)
    assert all(entry.name.startswith(".") for entry in cache.iterdir())
    (folder,) = cache.glob(".*.partial")
    assert [file.name for file in folder.rglob("*")] == ["model.onnx"]
    site.cut_after = SIZE * 10
    site.requests.clear()
    assert Bundle.open(fetch_model(uri, cache))
    assert site.requests == ["bundle.json", "data.bin"]
    assert not list(cache.glob(".*.partial"))


@pytest.mark.parametrize("name", ["digits/1", "one.onnx"])
def test_the_newest_copy_is_taken_while_the_store_is_down(
    site, few_retries, tmp_path, caplog, name
):
    uri, cache = f"{site.url}/{name}", tmp_path / "cache"
    (site.folder / "one.onnx").write_bytes(b"old")
    old = fetch_model(uri, cache)
    os.utime(old if old.is_dir() else old.parent, (0, 0))
    shutil.rmtree(site.folder / "digits/1")
    write_bundle(site.folder / "digits/1")
    (site.folder / "one.onnx").write_bytes(b"newer")
    new = fetch_model(uri, cache)
    assert new != old
    fetch_model(f"{site.url}/one.onnx", cache)
    site.shutdown()
    site.server_close()
    assert fetch_model(uri, cache) == new
    assert "The cache's newest copy is served. http://127.0.0.1" in caplog.text
    with pytest.raises(InvalidInputError, match="can't be read: GenericError"):
        fetch_model(f"{site.url}/digits", cache)


def test_a_wrong_digest_is_refused_and_nothing_of_it_stays(site, tmp_path):
    data = site.folder / "digits/1/weights/data.bin"
    data.write_bytes(bytes(SIZE))
    with pytest.raises(BundleError, match=r"http://.*/digits/1 is refused\..*'weights/data.bin'"):
        fetch_model(f"{site.url}/digits/1", tmp_path / "cache")
    assert [entry.suffix for entry in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_half_written_bundle_is_refused(site, tmp_path):
    data = site.folder / "digits/1/weights/data.bin"
    data.write_bytes(b"half")
    with pytest.raises(BundleError, match=r"'weights/data.bin' has 4 bytes where 3145728 were"):
        fetch_model(f"{site.url}/digits/1", tmp_path / "cache")
    data.unlink()
    with pytest.raises(BundleError, match=r"is incomplete: .*data\.bin"):
        fetch_model(f"{site.url}/digits/1", tmp_path / "cache")
    manifest = site.folder / "digits/1/bundle.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    with pytest.raises(BundleError, match="The manifest is incomplete"):
        fetch_model(f"{site.url}/digits/1", tmp_path / "cache")


def test_a_manifest_can_t_write_outside_of_the_cache(site, tmp_path):
    path = site.folder / "digits/1/bundle.json"
    manifest = Manifest.from_json(path.read_text())
    files = {"../../evil": {"sha256": "", "bytes": 1}}
    path.write_text(type(manifest)(**{**vars(manifest), "files": files}).to_json())
    with pytest.raises(InvalidInputError, match=r"a file named '../../evil': refused"):
        fetch_model(f"{site.url}/digits/1", tmp_path / "cache")


def test_processes_that_need_the_same_model_download_it_once(site, tmp_path):
    call = (
        "from keras_deepseek.inference import fetch_model; import sys; fetch_model(*sys.argv[1:])"
    )
    command = [sys.executable, "-c", call, f"{site.url}/digits/1", str(tmp_path / "cache")]
    children = [subprocess.Popen(command) for _ in range(2)]
    assert [child.wait(60) for child in children] == [0, 0]
    assert site.requests.count("data.bin") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_download_whose_server_is_silent(site, tmp_path, number):
    site.is_silent = True
    command = [sys.executable, "-m", "keras_deepseek", "serve", f"{site.url}/digits/1", "--no-grpc"]
    with subprocess.Popen([*command, "--cache-dir", tmp_path / "cache"]) as child:
        try:
            assert site.has_stalled.wait(60)
            child.send_signal(number)
            assert child.wait(20) == 0
        finally:
            child.kill()
            site.goes_on.set()


def test_a_single_file_is_a_model(site, tmp_path):
    (site.folder / "one.keras").write_bytes(b"a model")
    path = fetch_model(f"{site.url}/one.keras", tmp_path / "cache")
    assert (path.name, path.read_bytes()) == ("one.keras", b"a model")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["saved_model.pb", "variables/data"], ["saved_model.pb", "variables/data"]),
        (["model.onnx", "model.onnx.data", "x.md"], ["model.onnx", "model.onnx.data"]),
        (["one.keras", "README.md", "old/two.keras"], ["one.keras"]),
        (
            ["config.json", "tokenizer.json", "a.safetensors", "a.bin", "original/b.safetensors"],
            ["a.safetensors", "config.json", "tokenizer.json"],
        ),
        (
            ["assets/a.png", "assets/tokenizer/b.spm", "config.json", "model.weights.h5", "tf.h5"],
            ["assets/tokenizer/b.spm", "config.json", "model.weights.h5"],
        ),
    ],
)
def test_a_folder_of_a_bucket_is_listed(monkeypatch, tmp_path, names, expected):
    fill_bucket(monkeypatch, names)
    path = fetch_model("s3://bucket/digits", tmp_path)
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    assert files == (expected if path.is_dir() else [])
    assert path.is_dir() or path.read_bytes() == b"one.keras"


def test_a_folder_of_a_bucket_without_a_model_says_what_was_found(monkeypatch, tmp_path):
    fill_bucket(monkeypatch, ["1/model.onnx", "2/model.onnx"])
    message = r"No model at s3://bucket/digits\. Expected .*; found 1/model.onnx, 2/model.onnx\."
    with pytest.raises(InvalidInputError, match=message):
        fetch_model("s3://bucket/digits", tmp_path)


def fill_bucket(monkeypatch, names):
    """Makes obstore open a bucket in memory, whose files hold their names."""
    obstore = pytest.importorskip("obstore")
    pytest.importorskip("obstore.store")
    bucket = obstore.store.MemoryStore()
    for name in names:
        obstore.put(bucket, name, name.encode())
    monkeypatch.setattr(obstore.store, "from_url", lambda *_, **__: bucket)


def test_an_engine_serves_a_uri(site, tmp_path, bundle_of, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    shutil.copytree(bundle_of("onnx").path, site.folder / "double")
    with ServingEngine(f"{site.url}/double") as engine:
        assert engine.predict([[1, 2]]).tolist() == [[2.0, 4.0]]
        assert engine.load(f"{site.url}/double").number == 2
    assert len(list((tmp_path / "home/keras_deepseek").glob("double-*"))) == 1


@pytest.mark.parametrize("path", ["", "/sub"])
def test_a_repository_of_the_hub_is_downloaded(site, tmp_path, path):
    pytest.importorskip("huggingface_hub")
    code = (
        "import sys, logging\n"
        "from keras_deepseek.inference import fetch_model\n"
        "for _ in range(2):\n"
        "    print(fetch_model(*sys.argv[1:]))\n"
    )
    shutil.move(site.folder / "digits/1", site.folder / f"new{path}")
    site.folder = site.folder / "new"
    (site.folder / "README.md").write_text("A model.")
    done = subprocess.run(
        [sys.executable, "-c", code, f"hf://org/name@main{path}", str(tmp_path / "cache")],
        env={
            **os.environ,
            "HF_ENDPOINT": site.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == second
    assert Bundle.open(first)
    assert site.requests.count("data.bin") == 1


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s4://bucket/a", "Unknown scheme of a URI 's4'. Known: az, gs, hf"),
        ("https://host/a.onnx?version=1", r"Expected a URI without \? and #"),
        ("http://host.example/a", "Use https"),
        ("hf://digits", "Expected hf://organization/name@revision"),
        ("https://127.0.0.1:9/digits", "https://127.0.0.1:9/digits can't be read: "),
        ("https://127.0.0.1:9/one.onnx", "https://127.0.0.1:9/one.onnx can't be read: "),
        ("hf://org/name", "hf://org/name can't be read: "),
        ("s3://", "Received 's3://'. Expected s3://PLACE/PATH"),
        ("hf://", "Received 'hf://'. Expected hf://PLACE/PATH"),
    ],
)
def test_a_uri_that_is_wrong_or_unreachable_is_refused(
    few_retries, monkeypatch, tmp_path, uri, message
):
    pytest.importorskip("obstore")
    if uri.startswith("hf"):
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InvalidInputError, match=message) as caught:
        fetch_model(uri, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_web_folder_without_a_bundle_is_refused(site, tmp_path):
    with pytest.raises(InvalidInputError, match=r"There is no .*/digits/bundle\.json\. Expected"):
        fetch_model(f"{site.url}/digits", tmp_path / "cache")


def test_a_full_disk_is_told_before_the_download_and_during_it(site, tmp_path, monkeypatch):
    uri, cache = f"{site.url}/digits/1", tmp_path / "cache"
    with monkeypatch.context() as patch:
        usage = namedtuple("usage", "free")(1000)
        patch.setattr(model_download.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(NotSupportedError, match="is full: 3,145,735 bytes are needed, 1,000"):
            fetch_model(uri, cache)
    with monkeypatch.context() as patch:

        def fail(_path):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(model_download, "flush_to_disk", fail)
        with pytest.raises(NotSupportedError, match=r"is full: No space.*--cache-dir"):
            fetch_model(uri, cache)
    assert Bundle.open(fetch_model(uri, cache))


def test_a_cache_that_can_t_be_written_is_named(site, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(NotSupportedError, match=r"cache' cannot be written: File exists"):
        fetch_model(f"{site.url}/digits/1", tmp_path / "cache")


def test_a_missing_package_names_its_extra(monkeypatch, tmp_path):
    for package in ("obstore", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, package, None)
    for uri, extra in (("s3://bucket/a", "remote"), ("hf://org/name", "hub")):
        with pytest.raises(MissingExtraError, match=rf"keras_deepseek\[{extra}\]"):
            fetch_model(uri, tmp_path)


def test_paths_are_no_uris():
    assert [
        is_uri(path) for path in ("s3://a/b", "models/1", "package:function", Path("a"), 3)
    ] == [*(True, False, False, False, False)]


@pytest.mark.nightly
def test_a_bucket_of_s3_is_read(monkeypatch, tmp_path):
    server_module = pytest.importorskip("moto.server", reason="tox -e clients has it")
    obstore = pytest.importorskip("obstore")
    server = server_module.ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "key",
        }.items():
            monkeypatch.setenv(name, value)
        urllib.request.urlopen(
            urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")
        ).close()
        write_bundle(tmp_path / "bundle")
        bucket = obstore.store.from_url("s3://bucket")
        for file in (tmp_path / "bundle").rglob("*.*"):
            obstore.put(bucket, f"digits/1/{file.relative_to(tmp_path / 'bundle')}", file)
        obstore.put(bucket, "plain/model.onnx", b"a graph")
        assert Bundle.open(fetch_model("s3://bucket/digits/1", tmp_path / "cache"))
        path = fetch_model("s3://bucket/plain", tmp_path / "cache")
        assert path.read_bytes() == b"a graph"
        obstore.delete(bucket, "digits/1/model.onnx")
        with pytest.raises(BundleError, match="is incomplete"):
            fetch_model("s3://bucket/digits/1", tmp_path / "other")
        with pytest.raises(InvalidInputError, match=r"s3://none/digits can't be read: \w+: .*\.$"):
            fetch_model("s3://none/digits", tmp_path / "cache")
    finally:
        server.stop()
