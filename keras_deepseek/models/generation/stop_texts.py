"""Texts that end what is generated, in pieces of text that come one by one."""

from collections.abc import Sequence


class StopTexts:
    """Hands text on up to the first of some texts, and holds back what may become one.

    Args:
        texts: Those that end it, which are not handed on. Empty ones end nothing.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._held = ""
        self.is_met = False

    def push(self, piece: str) -> str:
        """Returns the text that is certain with one more piece.

        Args:
            piece: string.
        """
        if self.is_met:
            return ""
        text = self._held + piece
        places = [place for stop in self._texts if (place := text.find(stop)) >= 0]
        if places:
            self.is_met, self._held = True, ""
            return text[: min(places)]
        begin = next((at for at in range(len(text)) if self._may_begin(text[at:])), len(text))
        self._held = text[begin:]
        return text[:begin]

    def _may_begin(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._texts)

    def finish(self) -> str:
        """Returns what was held back and has become none of the texts."""
        held, self._held = self._held, ""
        return held
