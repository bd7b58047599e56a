"""The contracts of pyproject.toml hold, and each of them notices what it forbids."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "importlinter"
]["contracts"]

pytest.importorskip("importlinter", reason="the environment `no-framework` has it")

VIOLATIONS = [
    ("rows", "errors.py", "import keras_deepseek.artifacts"),
    ("rows", "artifacts/bundle.py", "import keras_deepseek.backend"),
    ("rows", "layers/__init__.py", "import keras_deepseek.training"),
    ("rows", "training/__init__.py", "import keras_deepseek.deploy"),
    ("rows", "layers/__init__.py", "import keras_deepseek.testing"),
    ("rows", "deploy/__init__.py", "import keras_deepseek.cli"),
    ("training", "training/step/precision.py", "import keras_deepseek.training.fit.step_plan"),
    ("training", "training/data/length_buckets.py", "import keras_deepseek.training.step"),
    ("deploy", "deploy/samples.py", "import keras_deepseek.deploy.routes.route"),
    ("deploy", "deploy/formats/onnx.py", "import keras_deepseek.deploy.exporter"),
    ("frameworks", "layers/__init__.py", "import torch.nn"),
    ("frameworks", "inference/__init__.py", "def late():\n    import tensorflow"),
    ("frameworks", "backend/export/named_model.py", "import jax"),
    ("frameworks", "backend/jax/devices.py", "import tensorflow"),
    ("backends", "backend/torch/devices.py", "import keras_deepseek.backend.jax"),
    ("artifacts", "artifacts/bundle.py", "import keras"),
    ("artifacts", "chat/chat_style.py", "import keras"),
    ("artifacts", "text/sampling.py", "import keras"),
    ("artifacts", "studio/store.py", "import keras"),
    ("studio", "studio/run_reader.py", "import keras_deepseek.studio.store"),
    ("studio", "studio/findings.py", "import keras_deepseek.studio.dashboard"),
    ("inference", "inference/__init__.py", "import keras"),
    ("inference", "inference/__init__.py", "import keras_deepseek.backend.export.named_model"),
    (
        "serving",
        "inference/batching/shape_queue.py",
        "import keras_deepseek.inference.models.served_model",
    ),
    ("serving", "inference/http/message.py", "import keras_deepseek.inference.grpc.answers"),
    ("serving", "inference/models/warm_up.py", "import keras_deepseek.inference.engine"),
    (
        "serving",
        "inference/monitoring/request_log.py",
        "import typing\nif typing.TYPE_CHECKING:\n    import keras_deepseek.inference.engine",
    ),
]


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def lint_imports(folder: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from importlinter.cli import lint_imports;"
        f"sys.exit(lint_imports(no_cache=True, limit_to_contracts={contracts}))"
    )
    return run(folder, sys.executable, "-c", code)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Returns a folder with the configuration and the package, free to be spoilt."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(
        ROOT / "keras_deepseek",
        tmp_path / "keras_deepseek",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return tmp_path


def plant(folder: Path, file: str, text: str) -> None:
    path = folder / "keras_deepseek" / file
    path.write_text(path.read_text(encoding="utf-8") + f"\n{text}\n", encoding="utf-8")


def test_all_contracts_hold(copy):
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("contract", "file", "text"), VIOLATIONS)
def test_a_planted_violation_breaks_its_contract(copy, contract, file, text):
    plant(copy, file, text)
    done = lint_imports(copy, contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 kept, 1 broken" in done.stdout


def test_every_contract_has_a_planted_violation():
    assert {contract["id"] for contract in CONTRACTS} == {contract for contract, *_ in VIOLATIONS}


@pytest.mark.parametrize(
    ("contract", "folder"),
    [("rows", "."), ("deploy", "deploy"), ("serving", "inference"), ("training", "training")],
)
def test_a_folder_that_no_row_names_is_refused(copy, contract, folder):
    cellar = copy / "keras_deepseek" / folder / "cellar"
    cellar.mkdir()
    (cellar / "__init__.py").write_text("", encoding="utf-8")
    assert lint_imports(copy, contract).returncode == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("layers/__init__.py", "from keras.src import backend"),
        ("training/__init__.py", "import keras.src.trainers"),
        ("deploy/__init__.py", "keras.Model()._flatten_layers()"),
        ("backend/torch/devices.py", "keras.Model()._flatten_layers()"),
        ("backend/export/named_model.py", "import keras.src.layers"),
    ],
)
def test_a_private_name_of_keras_outside_of_keras_private_is_refused(copy, file, text):
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251,SLF001"]
    clean = run(copy, *command)
    assert clean.returncode == 0, clean.stdout
    plant(copy, file, text)
    planted = run(copy, *command)
    assert planted.returncode == 1, planted.stdout + planted.stderr
