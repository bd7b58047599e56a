"""The installed wheel, in an environment of its own outside of the checkout, as a user runs it."""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SECONDS = 300
"""After this long a hanging process is ended, so that the run ends too."""

MAKE_MODEL = """
import json
import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((8, 8, 1), name="image"),
        keras.layers.Conv2D(4, 3, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax", name="probabilities"),
    ],
    name="digits",
)
model.save("digits.keras")
images = np.random.default_rng(0).random((5, 8, 8, 1), "float32")
predictions = model.predict(images, verbose=0)
with open("digits.json", "w") as file:
    json.dump({"instances": images.tolist(), "predictions": predictions.tolist()}, file)
"""


@dataclass(frozen=True)
class Installation:
    """A virtual environment that holds the wheel, and a folder to work in."""

    programs: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables of its processes: nothing there leads back into the checkout."""
        variables = {
            name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ
        }
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        return {**variables, "PATH": path, "OMP_NUM_THREADS": "1"}

    def run(
        self, *command: str | Path, seconds: float = SECONDS, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Returns what one of its programs printed and how it ended."""
        program, *arguments = map(str, command)
        return subprocess.run(
            [str(self.programs / program), *arguments],
            cwd=self.folder,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )


def _check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the wheel, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    _check(
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT],
            capture_output=True,
            text=True,
            check=False,
        )
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Installation]:
    """Returns a function from extras and packages to an environment with the wheel and them."""

    @functools.cache
    def run(extras: str, *packages: str) -> Installation:
        folder = tmp_path_factory.mktemp("outside")
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        command = [programs / "python", "-m", "pip", "install", "--quiet", f"{wheel}[{extras}]"]
        _check(
            subprocess.run(
                [*command, *packages],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
        )
        return Installation(programs, folder)

    return run


@pytest.fixture(scope="session")
def installation(install: Callable[..., Installation]) -> Installation:
    """Returns an environment with the wheel, TensorFlow, and what exporting and serving take."""
    return install("onnx,serving,tensorflow")


@pytest.fixture(scope="session")
def model_file(installation: Installation) -> Path:
    """Returns a `.keras` file; `digits.json` beside it holds images and their predictions."""
    _check(installation.run("python", "-c", MAKE_MODEL))
    return installation.folder / "digits.keras"


@pytest.fixture(scope="session")
def export(installation: Installation, model_file: Path) -> Callable[[str], Path]:
    """Returns a function from the name of a format to a bundle of the model."""

    def run(backend: str) -> Path:
        bundle = installation.folder / f"bundle_{backend}" / "1"
        if not bundle.exists():
            _check(
                installation.run(
                    "keras-deepseek", "export", model_file, "--format", backend, "-o", bundle
                )
            )
        return bundle

    return run


LOGGED = re.compile(
    r"[EIW]0000 |WARNING: All log messages before absl::InitializeLog|"
    r"[\d-]+ [\d:,]+ INFO \S+: (Loads|Version) "
)
"""What TensorFlow 2.21 logs when it is loaded, before it reads a setting, and what `serve` logs."""


def _assert_refused(done: subprocess.CompletedProcess[str], command: str, *words: str) -> None:
    """Asserts one line on stderr, beside the log, that holds all words."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if not LOGGED.match(line)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"keras-deepseek {command}: error: ")
    assert [word for word in words if word not in lines[0]] == [], lines[0]


@pytest.fixture
def assert_refused() -> Callable[..., None]:
    """Returns a function that asserts one line on stderr that holds all words."""
    return _assert_refused


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Returns the Chromium at the path that `CHROMIUM` names, or that of Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        path = os.environ.get("CHROMIUM")
        # Playwright loses sight of a frame that moves to another process.
        arguments = ["--no-sandbox", "--disable-site-isolation-trials"]
        browser = started.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Returns a function that opens a page of Studio, which must log no error."""
    # Where the wheel is tested, this package is installed in other environments only.
    from integration_tests.studio_pages import opened_pages

    with opened_pages(browser) as open_page:
        yield open_page


@pytest.fixture(scope="session")
def text_preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the preset of a language model that was taught some answers."""
    from integration_tests.text_model import write_preset

    folder = tmp_path_factory.mktemp("text") / "preset"
    write_preset(folder)
    return folder


@pytest.fixture(scope="session")
def text_server(text_preset: Path) -> Iterator[tuple[str, str]]:
    """Yields the addresses of HTTP and gRPC at which that model is served."""
    from integration_tests.announced_process import announced_process
    from integration_tests.text_model import NAME

    command = [sys.executable, "-m", "keras_deepseek", "serve", text_preset, "--name", NAME]
    ports = ["--http-port", "0", "--grpc-port", "0"]
    with announced_process([*command, *ports], ROOT, os.environ, 12 * SECONDS) as (process, line):
        assert "grpc://" in line, process.stderr.read()
        yield re.search(r"(http://[^/]+)", line)[1], re.search(r"grpc://([\w.:]+\d)", line)[1]


def _import_text_client(name: str) -> Any:
    """Returns a client's module, or skips the test."""
    package = name.partition(".")[0]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: `tox -e text-clients` has it")
    return import_module(name)


@pytest.fixture(scope="session")
def import_text_client() -> Callable[[str], Any]:
    """Returns a function that returns a client's module, or skips the test."""
    return _import_text_client
