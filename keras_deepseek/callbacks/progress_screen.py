"""Where the progress display writes: a terminal, a notebook, or a file that is read later.

Nothing is left behind where a training ends in an error: the cursor stays visible, and `sys.stdout`
is whoever's it was.
"""

import html
import sys
from typing import Any, Protocol

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

_BAR_WIDTH = 24


class Screen(Protocol):
    """What a training's progress is shown on."""

    seconds_between_updates: float | None
    """`None` where nothing can be written over."""

    def update(self, head: str, share: float | None, parts: list[str]) -> None:
        """Shows where the training is, in place of what stood there.

        Args:
            head: Which step of which epoch.
            share: How much of the epoch is done, or `None` where its length is not known.
            parts: What else there is to say, the most important first.
        """

    def write(self, line: str) -> None:
        """Writes a line that stays."""

    def close(self) -> None:
        """Takes away what `update` showed."""


class PlainScreen:
    """Lines that stay, for files, pipes and terminals that can do no more."""

    seconds_between_updates: float | None = None

    def update(self, head: str, share: float | None, parts: list[str]) -> None:
        """Shows nothing: what is written here stays."""

    def write(self, line: str) -> None:
        print(line, flush=True)

    def close(self) -> None:
        """Has nothing to take away."""


class TerminalScreen:
    """A line at the bottom of a terminal that is written over.

    Args:
        console: `rich.console.Console` of the terminal.
    """

    seconds_between_updates: float | None = 0.1

    def __init__(self, console: Console) -> None:
        self._console = console
        self._marks = ("━", "─") if console.encoding.startswith("utf") else ("=", "-")
        self._is_shown = False

    def update(self, head: str, share: float | None, parts: list[str]) -> None:
        text = Text(head, no_wrap=True, overflow="ellipsis")
        if share is not None:
            full = round(min(share, 1.0) * _BAR_WIDTH)
            text.append(" " + self._marks[0] * full, "green")
            text.append(self._marks[1] * (_BAR_WIDTH - full), "bright_black")
        for part in parts:
            text.append("  " + part)
        # One column is left, or the cursor would stand on a line of its own.
        text.truncate(self._console.width - 1, overflow="ellipsis")
        with self._console:  # All of it in one write.
            self._console.control(Control(ControlType.CARRIAGE_RETURN))
            self._console.print(text, end="", soft_wrap=True, highlight=False)
            self._console.control(Control((ControlType.ERASE_IN_LINE, 0)))
        self._is_shown = True

    def write(self, line: str) -> None:
        self.close()
        print(line, flush=True)

    def close(self) -> None:
        if self._is_shown:
            self._console.control(
                Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))
            )
            self._is_shown = False


class NotebookScreen:
    """An output of a notebook's cell that is written over, above the lines that stay."""

    seconds_between_updates: float | None = 0.25

    def __init__(self) -> None:
        self._handle: Any = None

    def update(self, head: str, share: float | None, parts: list[str]) -> None:
        bar = "" if share is None else f'<progress value="{share:.3f}" max="1"></progress> '
        plain = "  ".join([head, *parts])
        self._show(f"<pre>{bar}{html.escape(plain)}</pre>", plain)

    def write(self, line: str) -> None:
        print(line, flush=True)

    def close(self) -> None:
        if self._handle is not None:
            self._show("", "")

    def _show(self, rich: str, plain: str) -> None:
        from IPython.display import display

        bundle = {"text/html": rich, "text/plain": plain}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def choose_screen(style: str) -> Screen:
    """Returns what suits the place that `sys.stdout` leads to now.

    Args:
        style: `"auto"`, or `"lines"` for plain lines anywhere.
    """
    console = Console(file=sys.stdout)
    if style == "auto" and console.is_jupyter:
        return NotebookScreen()
    if style == "auto" and console.is_interactive:  # Neither a file nor a dumb terminal.
        return TerminalScreen(console)
    return PlainScreen()
