import io
import sys
import types

import pytest
from rich.console import Console

from keras_deepseek.callbacks.progress_screen import (
    NotebookScreen,
    PlainScreen,
    TerminalScreen,
    choose_screen,
)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def become_terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    def become_terminal(width=60):
        # Not in the fixture: before the test begins, pytest puts `sys.stdout` back.
        monkeypatch.setattr(sys, "stdout", Terminal())
        return sys.stdout, TerminalScreen(Console(file=sys.stdout, width=width))

    return become_terminal


def test_a_terminal_a_dumb_one_and_a_file_are_told_apart(become_terminal, monkeypatch):
    become_terminal()
    assert isinstance(choose_screen("auto"), TerminalScreen)
    assert isinstance(choose_screen("lines"), PlainScreen)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_screen("auto"), PlainScreen)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert isinstance(choose_screen("auto"), PlainScreen)


def test_a_line_of_a_terminal_is_written_over_and_never_wraps(become_terminal):
    terminal, screen = become_terminal()
    screen.update("Epoch 1/2 3/8", 0.375, ["loss: 0.5", "accuracy: 0.25", "memory: 1.00 GiB"])
    output = terminal.getvalue()
    assert output.startswith("\r")
    assert "\n" not in output
    assert "━" * 9 in output
    plain = output.replace("\r", "")
    for code in ("\x1b[32m", "\x1b[90m", "\x1b[0m", "\x1b[K"):
        plain = plain.replace(code, "")
    assert len(plain) == 59
    assert plain.endswith("…")


def test_a_line_that_stays_takes_the_place_of_the_one_that_does_not(become_terminal):
    terminal, screen = become_terminal()
    screen.update("Epoch 1/2 3/8", None, [])
    screen.write("Epoch 1/2 8/8")
    assert terminal.getvalue() == "\rEpoch 1/2 3/8\x1b[K\r\x1b[KEpoch 1/2 8/8\n"
    screen.close()
    assert terminal.getvalue().endswith("8/8\n")


def test_a_terminal_without_unicode_gets_none(become_terminal, monkeypatch):
    monkeypatch.setattr(Terminal, "encoding", "ascii")
    terminal, screen = become_terminal()
    screen.update("Epoch 1/1 1/2", 0.5, [])
    assert "=" * 12 in terminal.getvalue()
    terminal.getvalue().encode("ascii")


def test_a_notebook_gets_one_output_that_is_written_over(monkeypatch, capsys):
    displays = []

    class Handle:
        def update(self, bundle, raw):
            displays.append(("update", bundle))

    def display(bundle, raw, display_id):
        displays.append(("display", bundle))
        return Handle()

    module = types.ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    screen = choose_screen("auto")
    assert isinstance(screen, NotebookScreen)
    screen.update("Epoch 1/1 1/4", 0.25, ["<b>: 1"])
    screen.update("Epoch 1/1 2/4", None, [])
    screen.write("Epoch 1/1 4/4")
    screen.close()
    assert [what for what, _ in displays] == ["display", "update", "update"]
    assert 'value="0.250"' in displays[0][1]["text/html"]
    assert "&lt;b&gt;: 1" in displays[0][1]["text/html"]
    assert displays[0][1]["text/plain"] == "Epoch 1/1 1/4  <b>: 1"
    assert displays[2][1] == {"text/html": "", "text/plain": ""}
    assert capsys.readouterr().out == "Epoch 1/1 4/4\n"
