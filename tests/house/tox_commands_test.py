"""What tox would run is what tox.ini means: of a list of arguments no line becomes a command."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = {"env", "lint-imports", "mypy", "pytest", "python", "ruff"}

pytest.importorskip("tox", reason="the environment `lint` has it")


def commands(folder: Path) -> dict[str, list[str]]:
    """Returns the first word of each command by environment."""
    tox = [sys.executable, "-m", "tox", "config", "--workdir", str(folder), "-k", "commands"]
    shown = subprocess.run(
        [*tox, "-e", "ALL"], cwd=folder, capture_output=True, text=True, check=True
    )
    config = configparser.ConfigParser(interpolation=None, delimiters="=")
    config.read_string(shown.stdout)
    return {
        name.removeprefix("testenv:"): [line.split()[0] for line in lines if line]
        for name in config.sections()
        if "commands" in config[name]
        for lines in [config[name]["commands"].splitlines()]
    }


def test_each_command_begins_with_a_program(tmp_path):
    for name in ("tox.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    found = commands(tmp_path)
    assert {"frameworks", "kaggle", "lint", "slow"} <= set(found)
    assert {word for words in found.values() for word in words} <= PROGRAMS


def test_a_list_in_lines_would_be_noticed(tmp_path):
    text = (ROOT / "tox.ini").read_text(encoding="utf-8")
    # What is in quotes before it would keep it on one line.
    before, after = text.replace('-m "not another_case" ', "").split("of_export = ", 1)
    lines = after.replace("export_test.py", "\n    tests/backend/export_test.py", 1)
    (tmp_path / "tox.ini").write_text(f"{before}of_export =\n    {lines}", encoding="utf-8")
    assert not set(commands(tmp_path)["frameworks"]) <= PROGRAMS
