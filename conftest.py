"""Where each test runs, and what holds for every test.

A plain `pytest` runs every case of every test. `pytest --gate` runs what the gate does on one
backend, or where no framework is installed.
"""

import ctypes
import gc
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TIERS = {
    "no_framework": "the gate runs it where no framework is installed",
    "each_backend": "the gate runs its first case on each backend, and all cases on PyTorch",
    "torch_alone": "the gate runs it on PyTorch",
    "tensorflow_alone": "the gate runs it on TensorFlow",
    "nightly": "the gate leaves it out",
}

PLACES = {
    "": "nightly",
    "tests": "torch_alone",
    "tests/artifacts": "no_framework",
    "tests/backend": "each_backend",
    "tests/backend/gradient_sums_test.py": "torch_alone",
    "tests/backend/recurrent_layers_test.py": "torch_alone",
    "tests/chat": "no_framework",
    "tests/checks_test.py": "no_framework",
    "tests/cli_test.py": "no_framework",
    "tests/command_parser_test.py": "no_framework",
    "tests/deploy": "tensorflow_alone",
    "tests/deploy/onnx_writer": "torch_alone",
    "tests/docs": "no_framework",
    "tests/errors_test.py": "no_framework",
    "tests/graph": "torch_alone",
    "tests/graph/program_call_test.py": "each_backend",
    "tests/house": "no_framework",
    "tests/house/docstring_examples_test.py": "torch_alone",
    "tests/house/documented_defaults_test.py": "torch_alone",
    "tests/house/keras_layers_test.py": "torch_alone",
    "tests/house/layers_page_test.py": "torch_alone",
    "tests/house/mission_names_test.py": "torch_alone",
    "tests/house/operations_page_test.py": "torch_alone",
    "tests/house/pages_test.py": "torch_alone",
    "tests/house/public_api_test.py": "torch_alone",
    "tests/http_server_test.py": "no_framework",
    "tests/inference": "no_framework",
    "tests/inference/dispatcher_test.py": "torch_alone",
    "tests/inference/serve_test.py": "torch_alone",
    "tests/inference/serve_text_test.py": "torch_alone",
    "tests/inference/models/keras_hub_text_test.py": "torch_alone",
    "tests/inference/models/text_version_test.py": "torch_alone",
    "tests/inference/openai/served_model_test.py": "torch_alone",
    "tests/inference/engine_test.py": "torch_alone",
    "tests/inference/executors/keras_model_test.py": "each_backend",
    "tests/inference/executors/litert_model_test.py": "tensorflow_alone",
    "tests/inference/executors/open_executor_test.py": "tensorflow_alone",
    "tests/inference/executors/saved_model_test.py": "tensorflow_alone",
    "tests/inference/executors/tensorrt_engine_test.py": "torch_alone",
    "tests/inference/text/text_model_test.py": "each_backend",
    "tests/layers": "torch_alone",
    "tests/layers/attention/key_value_cache_test.py": "each_backend",
    "tests/layers/bounded_indices_test.py": "each_backend",
    "tests/layers/double_precision_test.py": "each_backend",
    "tests/layers/heads/chunked_gradient_test.py": "each_backend",
    "tests/layers/quantized_layers_test.py": "each_backend",
    "tests/models": "torch_alone",
    "tests/operator": "no_framework",
    "tests/studio": "no_framework",
    "tests/models/generation": "each_backend",
    "tests/models/generation/draft_acceptance_test.py": "torch_alone",
    "tests/models/generation/row_sampling_test.py": "torch_alone",
    "tests/models/generation/speculative_steps_test.py": "torch_alone",
    "tests/text": "no_framework",
    "tests/training": "each_backend",
    "tests/training/command_test.py": "no_framework",
    "tests/training/launch/launcher_test.py": "no_framework",
}
"""The tier of a file is that of the longest path here that it lies under.

A test that belongs elsewhere says so by one marker, named after its tier."""

_LEAST_MEMORY = pytest.StashKey[int]()
_MAX_GROWTH = 400 << 20

HAS_FRAMEWORK = any(map(importlib.util.find_spec, ("jax", "tensorflow", "torch")))

# `nohup` and background jobs start us with signals ignored, and each child would inherit that. We
# go on ignoring them, by a handler: a child does not inherit that, and starts with the default.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--gate`."""
    parser.addoption("--gate", action="store_true", help="run what the gate does on this backend")


def pytest_configure(config: pytest.Config) -> None:
    """Names the markers, and the backend of the gate where nobody has named one."""
    if config.getoption("--gate") and HAS_FRAMEWORK:
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # As Keras does.
    for tier, meaning in TIERS.items():
        config.addinivalue_line("markers", f"{tier}: {meaning}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out of the gate the files of which no test runs here: importing them takes time."""
    if not config.getoption("--gate"):
        return None
    path = collection_path.relative_to(config.rootpath).as_posix()
    if collection_path.is_dir():
        inside = [tier for folder, tier in PLACES.items() if folder.startswith(f"{path}/")]
        # A test in a folder that runs elsewhere may ask for this place by a marker.
        return True if not HAS_FRAMEWORK and not _any_here(_tier_of_file(path), *inside) else None
    if not path.endswith("_test.py"):
        return None
    markers = re.findall(r"pytest\.mark\.(\w+)", collection_path.read_text(encoding="utf-8"))
    tiers = TIERS.keys() & {_tier_of_file(path), *markers}
    return None if _any_here(*tiers) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps what the gate runs here, where `--gate` asks for it."""
    if not config.getoption("--gate"):
        return
    selected, left_out, seen_tests = [], [], set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        chosen = selected if _runs_here(item, is_first_case=test not in seen_tests) else left_out
        chosen.append(item)
        if _tier(item) == "each_backend":
            seen_tests.add(test)
    config.hook.pytest_deselected(items=left_out)
    items[:] = selected


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from what imports made: it took a sixth of the tests' time."""
    _free_memory()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Frees memory after a test once it has grown by `_MAX_GROWTH` bytes since the last time.

    JAX keeps every program that it compiles, and `malloc` the pages of those that are gone.
    """
    yield
    stash, memory = item.config.stash, _resident_memory()
    stash[_LEAST_MEMORY] = min(memory, stash.get(_LEAST_MEMORY, memory))
    if memory < stash[_LEAST_MEMORY] + _MAX_GROWTH:
        return
    if _backend() == "jax" and "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    _free_memory()
    stash[_LEAST_MEMORY] = _resident_memory()


def _free_memory() -> None:
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _resident_memory() -> int:
    """Returns the bytes that this process has in memory; 0 outside of Linux."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fails a test that says twice where it belongs; the gate leaves none of these out."""
    if len(markers := _tier_markers(item)) > 1:
        pytest.fail(f"It has more than one tier: {', '.join(markers)}.", pytrace=False)


def _runs_here(item: pytest.Item, is_first_case: bool) -> bool:
    tier = _tier(item)
    if tier == "each_backend" and _any_here(tier):
        # A folder that is TensorFlow's has its further cases there.
        is_tensorflow_s = _tier_of_file(_place(item)) == "tensorflow_alone"
        return is_first_case or _backend() == ("tensorflow" if is_tensorflow_s else "torch")
    return len(_tier_markers(item)) > 1 or _any_here(tier)


def _any_here(*tiers: str) -> bool:
    """Returns True if the gate runs a test of one of these tiers on this backend, or on none."""
    backend = _backend()
    if backend is None:
        return "no_framework" in tiers
    return "each_backend" in tiers or f"{backend}_alone" in tiers


def _tier(item: pytest.Item) -> str:
    return next(iter(_tier_markers(item)), _tier_of_file(_place(item)))


def _tier_markers(item: pytest.Item) -> list[str]:
    return [name for name in TIERS if item.get_closest_marker(name)]


def _backend() -> str | None:
    return os.environ["KERAS_BACKEND"] if HAS_FRAMEWORK else None


def _place(item: pytest.Item) -> str:
    return item.path.relative_to(item.config.rootpath).as_posix()


def _tier_of_file(path: str) -> str:
    above = [folder for folder in PLACES if not folder or f"{path}/".startswith(f"{folder}/")]
    return PLACES[max(above, key=len)]
