"""The images of `docker/Dockerfile`: their commands, run in folders in place of an image's.

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
from keras_deepseek.inference.protocols.grpc_messages import new_message, parse_message

request = new_message("tensorflow.serving.PredictRequest")
request.model_spec.name = "model"
request.inputs["x"].CopyFrom(to_tensor_proto(np.array([[1, 2]], "float32")))
with grpc.insecure_channel(sys.argv[1]) as channel:
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    data = call(request.SerializeToString(), timeout=60)
answer = parse_message("tensorflow.serving.PredictResponse", data)
print(from_tensor_proto(answer.outputs["y"], "y").tolist())
"""


def read_dockerfile() -> dict[str, list[tuple[str, str]]]:
    """Returns the instructions of each stage, by its name; the first one is its FROM."""
    text = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    stages: dict[str, list[tuple[str, str]]] = {}
    for line in joined:
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            name = arguments.rpartition(" AS ")[2]
            stages[name] = []
        if stages:
            stages[name].append((instruction, arguments.strip()))
    return stages


def words_of(stage: str, instruction: str) -> list[str]:
    return [arguments for word, arguments in read_dockerfile()[stage] if word == instruction]


@dataclass(frozen=True)
class Image:
    """The folders that stand for those of an image."""

    folder: Path
    name: str

    @property
    def programs(self) -> Path:
        return self.folder / f"opt/{self.name}/bin"

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the last stage: no other program is found there."""
        return {"PATH": str(self.programs), "HOME": str(self.folder), "PYTHONUNBUFFERED": "1"}

    def place(self, text: str) -> str:
        """Returns a command with the image's folders in their places here."""
        for name in (f"/opt/{self.name}", "/wheels", "/source"):
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
    """Returns the image of the servers."""
    return make_image(tmp_path_factory.mktemp("image"), "serving")


def make_image(folder: Path, name: str) -> Image:
    """Returns an image, made by the instructions of its first stages."""
    image = Image(folder, name)
    base = image.folder / "base"
    subprocess.run([sys.executable, "-m", "venv", base], check=True)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = {**variables, "PATH": f"{base / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    folder = image.folder
    stages = read_dockerfile()
    assert stages[f"{name}-packages"][0] == ("FROM", f"wheel AS {name}-packages")
    for instruction, arguments in stages["wheel"][1:] + stages[f"{name}-packages"][1:]:
        if instruction == "WORKDIR":
            folder = Path(image.place(arguments))
            folder.mkdir(parents=True)
        elif instruction == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                assert f"!{source}" in allowed
                copy_into(ROOT / source, folder / target)
        else:
            assert instruction == "RUN"
            command = image.place(arguments)
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
    (entrypoint,) = words_of("serving", "ENTRYPOINT")
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
    (check,) = words_of("serving", "HEALTHCHECK")
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


def test_a_model_that_needs_keras_is_refused_in_a_line(image, assert_refused):
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
    assert_refused(done, "serve", "a `.keras` file needs Keras")


def installed_packages(image: Image) -> set[str]:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(image.run(image.programs / "python", "-c", code).strip())
    size = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file())
    print(f"site-packages of {image.name}: {size / 2**20:.0f} MiB")
    names = {path.name for path in packages.iterdir()}
    assert not names & {"keras", "tensorflow", "jax", "torch", "onnx", "h5py", "optree", "pip"}
    return names


def test_no_framework_and_no_keras_is_installed(image):
    installed = installed_packages(image)
    assert {"keras_deepseek", "ml_dtypes", "obstore", "onnxruntime", "grpc", "uvicorn"} <= installed


def test_an_operator_without_keras_renders_and_says_that_it_has_no_cluster(tmp_path):
    image = make_image(tmp_path, "operator")
    assert {"keras_deepseek", "aiohttp", "kopf", "pydantic"} <= installed_packages(image)
    (entrypoint,), (arguments,) = (words_of("operator", name) for name in ("ENTRYPOINT", "CMD"))
    program, *command = json.loads(entrypoint)
    example = ROOT / "kubernetes/examples/keda.yaml"
    text = image.run(image.programs / program, command[0], "render", "-f", example)
    assert "kind: ScaledObject" in text
    done = subprocess.run(
        [image.programs / program, *command, *json.loads(arguments)],
        cwd=image.folder,
        env=image.environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, "Set KUBECONFIG" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("name", "ports", "entrypoint", "command"),
    [
        ("operator", "8080", "operator run", ["--liveness", "http://0.0.0.0:8080/healthz"]),
        ("serving", "8501 8500", "serve --host 0.0.0.0", ["/models/model"]),
    ],
)
def test_the_last_stage_is_the_runtime_of_an_own_user(name, ports, entrypoint, command):
    assert words_of(name, "COPY") == [f"--from={name}-packages /opt/{name} /opt/{name}"]
    instructions = [instruction for instruction, _ in read_dockerfile()[name]]
    assert instructions.index("USER") < instructions.index("ENTRYPOINT")
    assert words_of(name, "USER") == ["10001"]
    assert words_of(name, "EXPOSE") == [ports]
    assert json.loads(*words_of(name, "ENTRYPOINT")) == ["keras-deepseek", *entrypoint.split()]
    assert json.loads(*words_of(name, "CMD")) == command
