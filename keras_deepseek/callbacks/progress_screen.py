"""Outputs of the progress display: a terminal, a notebook, or a plain file.

They leave nothing behind if an error ends the training: the cursor stays visible, and `sys.stdout`
is not replaced.
"""

import html
import sys
from typing import Any, Protocol

from rich.console import Console

_BAR_WIDTH = 24
_GREEN, _GREY, _PLAIN, _ERASE_TO_END = "\x1b[32m", "\x1b[90m", "\x1b[0m", "\x1b[K"


class Screen(Protocol):
    """The output of a progress display: a terminal, a notebook or a plain file."""

    seconds_between_updates: float | None
    """`None` if lines can't be overwritten."""

    def update(self, head: str, share: float | None, parts: list[str]) -> None:
        """Shows the current progress in place of the previous one.

        Args:
            head: The epoch and the step.
            share: The finished share of the epoch, or `None` if its length is unknown.
            parts: Further texts, the most important first.
        """

    def write(self, line: str) -> None:
        """Prints a line that later updates do not overwrite."""

    def close(self) -> None:
        """Removes the text that `update` showed."""


class PlainScreen:
    """A progress output that prints plain lines, for files, pipes and simple terminals."""

    seconds_between_updates: float | None = None

    def update(self, head: str, share: float | None, parts: list[str]) -> None:
        """Shows nothing, because plain lines can't be overwritten."""

    def write(self, line: str) -> None:
        print(line, flush=True)

    def close(self) -> None:
        """Does nothing."""


class TerminalScreen:
    """A progress output that overwrites one line at the bottom of a terminal."""

    seconds_between_updates: float | None = 0.1

    def __init__(self, console: Console) -> None:
        self._console = console
        is_unicode = console.encoding.startswith("utf")
        self._full, self._empty, self._cut = ("━", "─", "…") if is_unicode else ("=", "-", ".")
        self._is_shown = False

    def update(self, head: str, share: float | None, parts: list[str]) -> None:
        # Formatted by hand: rich takes ten times as long, which is as long as a short step.
        full = None if share is None else round(min(share, 1.0) * _BAR_WIDTH)
        bar = "" if full is None else " " + self._full * full + self._empty * (_BAR_WIDTH - full)
        text = "  ".join([head + bar, *parts])
        # One column stays free, otherwise the cursor would move to a new line.
        room = self._console.width - 1
        if len(text) > room:
            text = text[: room - 1] + self._cut
        # Colours last, because their codes count as characters but have no width.
        start = len(head) + 1
        if full is not None and self._console.color_system and start + _BAR_WIDTH < room:
            middle, end = start + full, start + _BAR_WIDTH
            coloured = f"{_GREEN}{text[start:middle]}{_GREY}{text[middle:end]}{_PLAIN}"
            text = text[:start] + coloured + text[end:]
        self._send(f"\r{text}{_ERASE_TO_END}")
        self._is_shown = True

    def write(self, line: str) -> None:
        self.close()
        print(line, flush=True)

    def close(self) -> None:
        if self._is_shown:
            self._send(f"\r{_ERASE_TO_END}")
            self._is_shown = False

    def _send(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


class NotebookScreen:
    """A progress output in a notebook cell: a text that is overwritten, above lines that stay."""

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
    """Returns the screen that suits `sys.stdout`; style `"lines"` means plain lines anywhere."""
    console = Console(file=sys.stdout)
    if style == "auto" and console.is_jupyter:
        return NotebookScreen()
    # Not a file, a dumb terminal, or an old Windows console without control codes.
    if style == "auto" and console.is_interactive and not console.legacy_windows:
        return TerminalScreen(console)
    return PlainScreen()
