"""What the house tests ask about: the repository, our modules, our public names."""

import importlib
import inspect
import os
from pathlib import Path
from typing import Any

import pytest

import keras_deepseek

ROOT = Path(__file__).parents[2]
BACKENDS = ("jax", "tensorflow", "torch")


@pytest.fixture(scope="session")
def root() -> Path:
    """Returns the repository's folder."""
    return ROOT


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test once for each of our modules or each of our public classes and functions."""
    if "module_name" in metafunc.fixturenames:
        metafunc.parametrize(
            "module_name",
            _module_names(),
        )
    if "public_name" in metafunc.fixturenames:
        names = _public_names()
        if "public_class" in metafunc.fixturenames:
            names = [name for name in names if inspect.isclass(_get(name))]
        metafunc.parametrize("public_name", names)


def _module_names() -> list[str]:
    """Returns the modules that this backend can import."""
    other_backends = {f"keras_deepseek/backend/{name}/" for name in BACKENDS}
    other_backends.discard(f"keras_deepseek/backend/{os.environ['KERAS_BACKEND']}/")
    files = sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / "keras_deepseek").rglob("*.py")
    )
    return [
        file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for file in files
        if not file.startswith(tuple(other_backends))
    ]


def _public_names() -> list[str]:
    """Returns the classes and functions in the `__all__` of a room that this package defines."""
    names = []
    for room in keras_deepseek.__all__:
        module = getattr(keras_deepseek, room)
        names += [
            f"{module.__name__}.{name}"
            for name in getattr(module, "__all__", ())
            if getattr(getattr(module, name), "__module__", "").startswith("keras_deepseek")
        ]
    return names


def _get(public_name: str) -> Any:
    module, _, name = public_name.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.fixture
def public_object(public_name: str) -> Any:
    """Returns what a public name stands for."""
    return _get(public_name)


@pytest.fixture
def public_class(public_name: str) -> type:
    """Returns the class that a public name stands for; other names are left out."""
    return _get(public_name)
