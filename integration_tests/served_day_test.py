"""What hundreds of thousands of requests, good and bad ones, leave behind in a server: nothing.

Not part of a plain `tox`: `tox -e endurance`.
"""

import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("grpc")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def day(monkeypatch):
    """The section of the benchmark, which needs no package but ours."""
    for folder in ("rivals", "behaviour/..", ""):
        monkeypatch.syspath_prepend(str((ROOT / "benchmarks" / folder).resolve()))
    from behaviour import day

    return day


def test_memory_threads_and_files_stay_as_they_are(day):
    from server_processes import OURS

    lived = day.live_through(OURS, sys.executable, 300_000)
    progress, (*_, middle, _, _, _, _, last) = lived.progress, [point for _, point in lived.points]
    assert progress.sent >= 300_000
    assert {200, 400, 404, 500} <= set(progress.statuses)
    assert not progress.unexpected
    assert progress.lost == 0
    assert set(progress.calls) == {"OK"}
    assert last.threads == middle.threads
    assert last.files < middle.files + day.CLIENTS
    # A thing kept of each request would be more than a tenth of a kilobyte.
    assert lived.kilobytes_per_request < 0.05
