"""Ending of generated text at stop texts, which may be spread over several pieces."""

from collections.abc import Sequence


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
