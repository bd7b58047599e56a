import io
import re

import pytest
from rich.console import Console

from keras_deepseek.deploy.stage_display import StageDisplay, check_verbose
from keras_deepseek.errors import InvalidInputError


def shown(*stages, is_terminal=True, verbose="auto"):
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=100)
    with StageDisplay(verbose, console) as show:
        for stage in stages:
            show(stage)
    return file.getvalue()


def test_on_a_terminal_each_stage_leaves_a_line_with_its_time():
    text = shown("onnx: writing [bold]", "onnx: running")
    lines = [line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", text) if " s)" in line]
    assert [re.sub(r"\(\d+\.\d s\)", "(s)", line) for line in lines] == [
        "onnx: writing [bold] (s)",
        "onnx: running (s)",
    ]


def test_elsewhere_a_stage_is_a_line_as_it_begins(capsys):
    file = io.StringIO()
    console = Console(file=file, force_terminal=False)
    with StageDisplay("auto", console) as show:
        show("onnx: writing")
        assert capsys.readouterr().out == "onnx: writing\n"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_verbose_0_shows_nothing(is_terminal, capsys):
    assert shown("onnx: writing", is_terminal=is_terminal, verbose=0) == ""
    assert capsys.readouterr().out == ""


def test_verbose_2_shows_plain_lines_on_a_terminal(capsys):
    assert shown("onnx: writing", verbose=2) == ""
    assert capsys.readouterr().out == "onnx: writing\n"


@pytest.mark.parametrize("verbose", [3, "all", None])
def test_unknown_verbose_is_rejected(verbose):
    with pytest.raises(InvalidInputError, match='`verbose` must be "auto", 0, 1 or 2'):
        check_verbose(verbose)
