"""Where tests run, and that they do not depend on how they were started."""

import subprocess
import sys

import pytest

ASKS_A_CHILD = """
import subprocess, sys
def test_a_child_begins_with_the_default_signals():
    code = "import signal; print(*map(signal.getsignal, (1, 2, 3, 15)), sep='\\\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "SIG_IGN" not in done.stdout
"""

HAS_TWO_TIERS = """
import pytest
@pytest.mark.nightly
@pytest.mark.torch_alone
def test_nothing():
    pass
"""


@pytest.fixture
def run_there(root, tmp_path):
    """Returns a function that runs a test file under the conftest of this repository."""
    (tmp_path / "conftest.py").write_bytes((root / "conftest.py").read_bytes())

    def run(text, *options, shell='exec "$@"'):
        (tmp_path / "some_test.py").write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", *options, "some_test.py"]
        return subprocess.run(
            ["sh", "-c", shell, "sh", *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_each_place_that_has_a_tier_exists(root, pytestconfig):
    conftest = pytestconfig.pluginmanager.get_plugin(str(root / "conftest.py"))
    assert [path for path in conftest.PLACES if not (root / path).exists()] == []
    assert set(conftest.PLACES.values()) <= set(conftest.TIERS)


def test_ignored_signals_do_not_reach_the_children_of_tests(run_there):
    done = run_there(ASKS_A_CHILD, shell="trap '' HUP INT QUIT TERM; exec \"$@\"")
    assert done.returncode == 0, done.stdout


def test_a_test_of_two_tiers_fails_in_the_gate(run_there):
    done = run_there(HAS_TWO_TIERS, "--gate")
    assert done.returncode == 1
    assert "It has more than one tier: torch_alone, nightly." in done.stdout
