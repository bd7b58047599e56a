"""Folders of invented runs."""

import os
import time

import pytest

from tests.oracles.run_records import invent


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Returns a folder with a healthy run and one whose process was killed."""
    folder = tmp_path_factory.mktemp("runs")
    invent(folder / "healthy.sqlite", steps=600, begin=time.time() - 9000)
    invent(folder / "group" / "killed.sqlite", "killed", steps=300, begin=time.time() - 5000)
    for path in folder.rglob("*.sqlite"):
        os.utime(path, (1e9, 1e9))  # A file that was written just now is read again and again.
    return folder


@pytest.fixture(scope="session")
def root(pytestconfig):
    """Returns the repository's folder."""
    return pytestconfig.rootpath
