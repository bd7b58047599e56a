"""The commands on each page have flags, scripts and tox environments that exist."""

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from keras_deepseek.cli import PROGRAM, _make_parser
from tests.oracles.pages import NAMES, ROOT, read_blocks

ASSIGNMENT = re.compile(r"[A-Z_]+=.*")


def list_commands(name: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the line and the words of each command in the shell blocks of a page."""
    for block in read_blocks(ROOT / name):
        if block.language != "bash" or not block.runs:
            continue
        line = block.line
        for text in block.text.replace("\\\n", "\0").splitlines():
            for part in re.split(r"&&|\|", text.replace("\0", " ")):
                words = shlex.split(part.strip().removesuffix("&"), comments=True)
                while words and ASSIGNMENT.fullmatch(words[0]):
                    words.pop(0)
                if words:
                    yield line + 1, words
            line += 1 + text.count("\0")


def find_faults(name: str) -> Iterator[str]:
    for line, words in list_commands(name):
        if words[0] == PROGRAM:
            printed = io.StringIO()
            if "--config" in words:  # It is the YAML of the page, in the folder of the test.
                yaml = next(block.text for block in read_blocks(ROOT / name) if block[0] == "yaml")
                Path(words[words.index("--config") + 1]).write_text(yaml, encoding="utf-8")
            try:
                with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
                    _make_parser().parse_args(words[1:])
            except SystemExit as end:
                if end.code:  # `--help` ends with 0.
                    yield f"{name}:{line}: {printed.getvalue().splitlines()[-1]}"
        elif words[0] == "python" and words[1].endswith(".py"):
            script = ROOT / words[1]
            source = script.read_text(encoding="utf-8") if script.is_file() else ""
            if not source:
                yield f"{name}:{line}: there is no {words[1]}"
            if script.parent.name == "benchmarks":  # Its parser has flags that all share.
                source += (script.parent / "processes.py").read_text(encoding="utf-8")
            for flag in re.findall(r"(?<!\S)--[a-z-]+", " ".join(words[2:])):
                if f'"{flag}"' not in source:
                    yield f"{name}:{line}: {words[1]} has no flag {flag}"


def list_flags(parser: argparse.ArgumentParser) -> set[str]:
    """Returns the flags of a parser and of the parsers of its sub-commands."""
    flags = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags |= set().union(*map(list_flags, action.choices.values()))
    return flags


@pytest.mark.parametrize("name", NAMES)
def test_flags_of_commands_in_a_sentence_exist(name):
    (commands,) = (
        action.choices
        for action in _make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    text = (ROOT / name).read_text(encoding="utf-8")
    for command, arguments in re.findall(rf"`{PROGRAM} ([\w-]+)([^`\n]*)`", text):
        assert command in commands
        flags = re.findall(r"(?<!\S)--[a-z-]+", arguments)
        assert set(flags) <= list_flags(commands[command]), command


@pytest.mark.parametrize("name", [name for name in NAMES if any(list_commands(name))])
def test_flags_and_scripts_exist(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(find_faults(name)) == []


@pytest.mark.parametrize("name", [*NAMES, "CONTRIBUTING.md"])
def test_the_environments_of_tox_exist(name):
    environments = set(
        re.findall(r"^\[testenv:([\w-]+)\]", (ROOT / "tox.ini").read_text(), re.MULTILINE)
    )
    named = re.findall(r"\btox -e ([\w-]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert set(named) <= environments


def test_an_unknown_flag_is_found_with_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n\n```bash\nA=1 keras-deepseek serve \\\n  model --bad 1  # text\n```\n"
    )
    (fault,) = find_faults(str(page))
    assert fault.startswith(f"{page}:4: ")
    assert "--bad" in fault
