"""What holds for every test here: a fixed seed, a folder that is removed, no state left behind."""

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # More make a fit in torch many times slower.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# A test runs on JAX what it compiles once or twice: not worth polishing its machine code.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["KERAS_BACKEND"] == "jax":  # These emitters take 40 % of the time of compiling.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import hypothesis
import pytest

from tests.oracles.tensorrt_stand_in import CudaRuntime, PlainTensorRT

# A deadline would be a timed assertion, and a failure must be the same one in the next run.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_report_header() -> str:
    """Says what the tests run on."""
    return f"keras {version('keras')} on {os.environ['KERAS_BACKEND']}"


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_folder() -> Iterator[None]:
    """Gives the tests, and the processes that they start, a folder for what they don't remove.

    These are the examples of docstrings, and processes that are killed or end by `os._exit`.
    """
    folder = tempfile.mkdtemp(prefix="tests_")  # Short: the paths of sockets may lie in it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Seeds each test and puts Keras's dtype policy back, where Keras is loaded at all."""
    if "keras" not in sys.modules:
        yield
        return
    import keras

    keras.utils.set_random_seed(0)
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture(scope="session")
def make_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Callable[[Path], Any]], Path]:
    """Returns a function that fills a folder, once for all processes of pytest-xdist.

    It takes the folder's name, and the function that is given the new folder; it returns the
    folder. Where the first to ask fails, each of the others tries, and fails, by itself.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # That of all of them.

    def make(name: str, fill: Callable[[Path], Any]) -> Path:
        target = folder / f"made_{name}"
        with target.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                unfinished = Path(tempfile.mkdtemp(dir=folder))
                fill(unfinished)
                unfinished.rename(target)
        return target

    return make


@pytest.fixture
def num_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Returns a function that says how many GPUs are visible; none, before it is called."""
    from keras_deepseek.backend.runtimes.tensorrt_engine import libraries

    def say(count: int) -> None:
        monkeypatch.setattr(libraries, "count_gpus", lambda: count)

    say(0)
    return say


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaRuntime]:
    """Stands for `cuda-python`; in the end nothing may be left on its GPU."""
    stand_in = CudaRuntime()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", stand_in)
    yield stand_in
    assert (stand_in.memory, stand_in.streams) == ({}, {})


@pytest.fixture
def plain_tensorrt(
    monkeypatch: pytest.MonkeyPatch, cuda: CudaRuntime, num_gpus: Callable[[int], None]
) -> PlainTensorRT:
    """Stands for plain TensorRT on a machine with a GPU."""
    num_gpus(1)
    stand_in = PlainTensorRT(cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in)
    return stand_in
