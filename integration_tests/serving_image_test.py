"""The image of `docker/serving`: its commands, run in folders of their own in place of an image's.

Docker itself is not needed, nor tried: what is installed and started is what the Dockerfile says.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration_tests.announced_process import announced_process

ROOT = Path(__file__).parents[1]
SECONDS = 300

MAKE_BUNDLE = """
import base64
import sys
from pathlib import Path

from keras_deepseek.artifacts import Manifest, Signature, TensorSpec, Verification
from keras_deepseek.artifacts.bundle import publish_bundle
from keras_deepseek.artifacts.staging_folder import staging_folder

# y = x + x, of shape (rows, 2).
ONNX = (
    "CAk6SgoOCgF4CgF4EgF5IgNBZGQSBmRvdWJsZVoXCgF4EhIKEAgBEgwKBhIEcm93cwoCCAJiFwoBeRIS"
    "ChAIARIMCgYSBHJvd3MKAggCQgQKABAS"
)
path = Path(sys.argv[1])
signature = Signature(
    inputs=(TensorSpec("x", (None, 2), "float32"),),
    outputs=(TensorSpec("y", (None, 2), "float32"),),
)
with staging_folder(path) as folder:
    (folder / "model.onnx").write_bytes(base64.b64decode(ONNX))
    manifest = Manifest(
        name="double",
        format="onnx",
        entry="model.onnx",
        signature=signature,
        precision="float32",
        route="a test",
        versions={},
        created="2026-01-01T00:00:00Z",
        verification=Verification("unverified", "a test"),
    )
    publish_bundle(folder, path, manifest)
"""

ASK_OVER_GRPC = """
import sys

import grpc
import numpy as np

from keras_deepseek.inference.protocols.tensor_proto import from_tensor_proto, to_tensor_proto
from keras_deepseek.inference.protocols.messages import new_message, parse_message

request = new_message("tensorflow.serving.PredictRequest")
request.model_spec.name = "model"
request.inputs["x"].CopyFrom(to_tensor_proto(np.array([[1, 2]], "float32")))
with grpc.insecure_channel(sys.argv[1]) as channel:
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    data = call(request.SerializeToString(), timeout=60)
answer = parse_message("tensorflow.serving.PredictResponse", data)
print(from_tensor_proto(answer.outputs["y"], "y").tolist())
"""


def read_dockerfile() -> list[list[tuple[str, str]]]:
    """Returns the instructions of each stage, the first one being its FROM."""
    text = (ROOT / "docker/serving/Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    stages: list[list[tuple[str, str]]] = []
    for line in joined:
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stages.append([])
        if stages:
            stages[-1].append((name, rest.strip()))
    return stages


def words_of(stage: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for found, rest in stage if found == name]


@dataclass(frozen=True)
class Image:
    """The folders that stand for those of the image."""

    folder: Path

    @property
    def programs(self) -> Path:
        return self.folder / "opt/serving/bin"

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the last stage: no other program is found there."""
        return {"PATH": str(self.programs), "HOME": str(self.folder), "PYTHONUNBUFFERED": "1"}

    def place(self, text: str) -> str:
        """Returns a command with the image's folders in their places here."""
        for name in ("/opt/serving", "/wheels", "/source"):
            text = text.replace(name, f"{self.folder}{name}")
        return text

    def run(self, *command: str | Path) -> str:
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Image:
    """Returns the image, made by the instructions of the first stage."""
    image = Image(tmp_path_factory.mktemp("image"))
    base = image.folder / "base"
    subprocess.run([sys.executable, "-m", "venv", base], check=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = {**kept, "PATH": f"{base / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    folder = image.folder
    for name, rest in read_dockerfile()[0][1:]:
        if name == "WORKDIR":
            folder = Path(image.place(rest))
            folder.mkdir(parents=True)
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                assert f"!{source}" in allowed
                copy_into(ROOT / source, folder / target)
        else:
            assert name == "RUN"
            command = image.place(rest)
            done = subprocess.run(
                command,
                shell=True,  # As Docker does.
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return image


def copy_into(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


@contextmanager
def serving(image: Image, path: Path) -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    """Yields the process of the entrypoint, and what its HTTP and its gRPC are reached by."""
    (entrypoint,) = words_of(read_dockerfile()[1], "ENTRYPOINT")
    program, *arguments = json.loads(entrypoint)
    command = [image.programs / program, *arguments, path, "--http-port", "0", "--grpc-port", "0"]
    with announced_process(command, image.folder, image.environment, SECONDS) as (process, line):
        assert line.startswith("Serving 'model' at http://0.0.0.0:"), process.stderr.read()
        http, _, grpc = line.split(" at ")[1].strip().partition(" and ")
        http = http.partition("/v1")[0]
        yield process, *(url.replace("0.0.0.0", "127.0.0.1") for url in (http, grpc))


def test_an_image_without_keras_serves_over_http_and_grpc_and_ends_with_0(image):
    path = image.folder / "models/model"
    path.parent.mkdir()
    image.run(image.programs / "python", "-c", MAKE_BUNDLE, path)
    (check,) = words_of(read_dockerfile()[1], "HEALTHCHECK")
    program, *arguments = json.loads(check.partition("CMD ")[2])
    with serving(image, path) as (process, http, grpc):
        port = http.rpartition(":")[2]
        image.run(
            image.programs / program, *(word.replace(":8501", f":{port}") for word in arguments)
        )
        body = b'{"instances": [[1, 2]]}'
        with urllib.request.urlopen(f"{http}/v1/models/model:predict", body, 60) as response:
            assert json.load(response) == {"predictions": [[2.0, 4.0]]}
        target = grpc.removeprefix("grpc://")
        answer = image.run(image.programs / "python", "-c", ASK_OVER_GRPC, target)
        assert answer.strip() == "[[2.0, 4.0]]"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, process.stderr.read()


def test_a_model_that_needs_keras_is_refused_in_a_line(image):
    (image.folder / "model.keras").write_bytes(b"no model")
    done = subprocess.run(
        [image.programs / "keras-deepseek", "serve", "model.keras"],
        cwd=image.folder,
        env=image.environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert (done.returncode, "a `.keras` file needs Keras" in line) == (2, True)


def test_no_framework_and_no_keras_is_installed(image):
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(image.run(image.programs / "python", "-c", code).strip())
    found = {path.name for path in packages.iterdir()}
    assert not found & {"keras", "tensorflow", "jax", "torch", "onnx", "h5py", "pip"}
    assert {"keras_deepseek", "onnxruntime", "grpc", "httptools", "uvicorn"} <= found
    size = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file())
    print(f"site-packages of the image: {size / 2**20:.0f} MiB")


def test_the_last_stage_is_the_runtime_of_an_own_user():
    _, last = read_dockerfile()
    assert words_of(last, "COPY") == ["--from=build /opt/serving /opt/serving"]
    names = [name for name, _ in last]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert words_of(last, "USER") == ["10001"]
    assert words_of(last, "EXPOSE") == ["8501 8500"]
    assert json.loads(*words_of(last, "ENTRYPOINT"))[-2:] == ["--host", "0.0.0.0"]
    assert json.loads(*words_of(last, "CMD")) == ["/models/model"]
