"""Stop strings in a text that comes in pieces."""

from collections import deque
from collections.abc import Iterable


class StopStrings:
    """The automaton that finds the first of many strings, in one step for each character.

    It never changes, so that the answers to one prompt can share it. A state is a beginning of some
    string: the longest one that the text ends with.

    Reference: Aho and Corasick, "Efficient String Matching", 1975.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._lengths = [0]
        """The length of the longest string that ends in a state, or 0."""
        self.depths = [0]
        """The characters of each state."""
        for string in strings:
            self._add(string)
        self._fallbacks = self._link()

    def _add(self, string: str) -> None:
        state = 0
        for character in string:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._lengths.append(0)
                self.depths.append(self.depths[state] + 1)
            state = self._next[state][character]
        self._lengths[state] = len(string)

    def _link(self) -> list[int]:
        """Returns the next shorter state that each state ends with."""
        fallbacks = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for character, longer in self._next[state].items():
                shorter = fallbacks[state]
                while shorter and character not in self._next[shorter]:
                    shorter = fallbacks[shorter]
                fallbacks[longer] = self._next[shorter].get(character, 0)
                self._lengths[longer] = self._lengths[longer] or self._lengths[fallbacks[longer]]
                queue.append(longer)
        return fallbacks

    def step(self, state: int, character: str) -> tuple[int, int]:
        """Returns the state after a character, and the length of a string that ends there, or 0."""
        while state and character not in self._next[state]:
            state = self._fallbacks[state]
        state = self._next[state].get(character, 0)
        return state, self._lengths[state]


class StopFilter:
    """Ends a text before the first stop string.

    It holds text back only while it may be the beginning of a stop string. The pieces come from
    `Tokenizer.stream()`, which holds back unfinished characters. The string that ends first counts,
    and of two that end at once the longer one.

    Example:

    >>> text = StopFilter(StopStrings(["END"]))
    >>> text.push("The E"), text.push("NGINE"), text.push("ND"), text.is_stopped
    ('The ', 'ENGIN', '', True)
    """

    def __init__(self, stops: StopStrings) -> None:
        self.is_stopped = False
        self._stops = stops
        self._state = 0
        self._held_text = ""

    def push(self, piece: str) -> str:
        """Adds a piece of text, and returns what is certain now. Nothing comes after the stop."""
        if self.is_stopped:
            return ""
        text = self._held_text + piece
        for index, character in enumerate(piece, start=len(self._held_text)):
            self._state, length = self._stops.step(self._state, character)
            if length:
                self.is_stopped = True
                self._held_text = ""
                return text[: index + 1 - length]
        certain = len(text) - self._stops.depths[self._state]
        self._held_text = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """Returns the text that was held back, as the answer has ended in another way."""
        text, self._held_text = self._held_text, ""
        return text
