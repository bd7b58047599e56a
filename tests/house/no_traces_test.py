"""Nothing in the repository speaks of the machine that it was written on."""

import re
import shutil
import subprocess

import pytest

PATH_OF_A_MACHINE = re.compile(r"(?<![\w.])/(?:work|root|home|Users|tmp/venvs)/\w")


def test_no_file_names_a_path_of_a_machine(root):
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("The files of the repository are what git lists, and there is no git here.")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    traces = [
        f"{name}:{number}: {line.strip()}"
        for name in listed
        if (root / name).is_file()
        for number, line in enumerate(
            (root / name).read_text(encoding="utf-8", errors="replace").splitlines(), 1
        )
        if PATH_OF_A_MACHINE.search(line)
    ]
    assert traces == []
