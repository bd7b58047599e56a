"""Where tests run, and that they do not depend on how they were started."""

import subprocess
import sys

ASKS_A_CHILD = """
import subprocess, sys
def test_a_child_begins_with_the_default_signals():
    code = "import signal; print(*map(signal.getsignal, (1, 2, 3, 15)), sep='\\\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "SIG_IGN" not in done.stdout
"""


def test_each_place_that_has_a_tier_exists(root, pytestconfig):
    conftest = pytestconfig.pluginmanager.get_plugin(str(root / "conftest.py"))
    assert [place for place in conftest.PLACES if not (root / place).exists()] == []
    assert set(conftest.PLACES.values()) <= set(conftest.TIERS)


def test_ignored_signals_do_not_reach_the_children_of_tests(root, tmp_path):
    (tmp_path / "asked_test.py").write_text(ASKS_A_CHILD, encoding="utf-8")
    (tmp_path / "conftest.py").write_bytes((root / "conftest.py").read_bytes())
    shell = "trap '' HUP INT QUIT TERM; exec \"$@\""
    done = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-m", "pytest", "-q", "asked_test.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
