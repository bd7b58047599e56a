"""Objects of the operator's tests."""

import asyncio
from pathlib import Path

import pytest


@pytest.fixture
def deployment():
    """Returns a function that makes a `ModelDeployment` as the API server has it."""

    def make(name="digits", **spec):
        metadata = {"name": name, "namespace": "default", "uid": "uid", "generation": 1}
        return {
            "apiVersion": "deepseek.io/v1",
            "kind": "ModelDeployment",
            "metadata": metadata,
            "spec": spec or {"model": {"uri": "s3://models/digits"}},
        }

    return make


@pytest.fixture
def run_async():
    """Returns a function that runs a coroutine."""
    return asyncio.run


@pytest.fixture
def root():
    """Returns the repository's folder."""
    return Path(__file__).parents[2]
