"""Display of generated text on a terminal or in a file, up to a stop text."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

_REFRESHES = 12
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class OutputConsole(Console):
    """A console that raises `BrokenPipeError` if the output pipe is closed.

    Rich would exit with code 1.
    """

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class LiveText:
    """A display of text that arrives in pieces, with tokens per second below it on a terminal.

    Complete lines are printed once; only the last line is redrawn. A file or a pipe gets only the
    text. Use it in a `with` block. The clock returns seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.perf_counter) -> None:
        self._console = console
        self._clock = clock
        self._line = ""
        self._num_tokens = 0
        self._begin = self._first = self._last = clock()
        self._live = Live(
            console=console, refresh_per_second=_REFRESHES, transient=True, auto_refresh=False
        )
        self._shown = -1.0

    def __enter__(self) -> "LiveText":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._console.is_terminal:
            self._live.stop()
            self._write(self._line, end="\n")
        elif self._num_tokens:
            self._write("", end="\n")

    def push(self, piece: str) -> None:
        """Shows the text that one more token adds, possibly empty, and counts the token."""
        self._num_tokens += 1
        self._last = self._clock()
        if self._num_tokens == 1:
            self._first = self._last
        self.add(piece)

    def add(self, piece: str) -> None:
        """Shows text without counting a token."""
        if not self._console.is_terminal:
            self._write(piece, end="")
            return
        *complete, self._line = (self._line + piece).split("\n")
        for line in complete:
            self._write(line, end="\n")
        if self._last - self._shown >= 1 / _REFRESHES:
            self._shown = self._last
            text = self._show(self._line).append(f"\n{self.describe()}")
            self._live.update(text, refresh=True)

    def _show(self, text: str) -> Text:
        """Returns a text with control characters replaced by visible symbols."""
        return Text(text.translate(_PICTURES))

    def _write(self, text: str, end: str) -> None:
        if self._console.is_terminal:
            self._console.print(self._show(text), end=end, soft_wrap=True)
            return
        self._console.file.write(
            text + end
        )  # Rich would expand tabs and remove control characters.
        self._console.file.flush()

    def describe(self) -> str:
        """Returns a line with the token count, the first token's wait, and tokens per second."""
        if not self._num_tokens:
            return "0 tokens"
        words = f"{self._num_tokens} token{'s' if self._num_tokens > 1 else ''}"
        words += f", the first after {self._first - self._begin:.2f} s"
        if self._last > self._first:
            rate = (self._num_tokens - 1) / (self._last - self._first)
            words += f", then {rate:.1f} tokens/s"
        return words


class StopTexts:
    """A filter of text pieces that ends at a stop text and holds back a possible start of one.

    The stop texts are not returned. Empty ones are ignored.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._held = ""
        self.is_met = False

    def push(self, piece: str) -> str:
        """Adds a piece of text, and returns the text that can't belong to a stop text."""
        if self.is_met:
            return ""
        text = self._held + piece
        indices = [index for stop in self._texts if (index := text.find(stop)) >= 0]
        if indices:
            self.is_met, self._held = True, ""
            return text[: min(indices)]
        begin = next((at for at in range(len(text)) if self._may_begin(text[at:])), len(text))
        self._held = text[begin:]
        return text[:begin]

    def _may_begin(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._texts)

    def finish(self) -> str:
        """Returns the rest of the text, which was held back as a possible start of a stop text."""
        end, self._held = self._held, ""
        return end
