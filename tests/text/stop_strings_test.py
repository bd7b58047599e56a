import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.text.stop_strings import StopFilter, StopStrings


def find_stop(text, stops):
    """Returns where the first stop string begins, by trying each at each end."""
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return end - max(lengths)
    return None


def longest_beginning(text, stops):
    beginnings = {stop[:length] for stop in stops for length in range(len(stop))}
    endings = (text[start:] for start in range(len(text) + 1))
    return max(len(ending) for ending in endings if ending in beginnings)


@given(
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=6),
    st.lists(st.text("abcd", max_size=5), max_size=8),
)
def test_text_ends_before_the_first_stop_string_and_waits_only_for_its_beginning(stops, pieces):
    stop_filter = StopFilter(StopStrings(stops))
    received, text = "", ""
    for piece in pieces:
        received += stop_filter.push(piece)
        text += piece
        stop = find_stop(text, stops)
        assert stop_filter.is_stopped == (stop is not None)
        if stop is not None:
            assert received == text[:stop]
            break
        held_back = longest_beginning(text, stops) if stops else 0
        assert received == text[: len(text) - held_back]
    if not stop_filter.is_stopped:
        assert received + stop_filter.finish() == text
    assert stop_filter.push("a") == "" or not stop_filter.is_stopped


class CountedCharacter:
    """A character that counts how often a table was asked for it."""

    num_looked_up = 0

    def __init__(self, character):
        self.character = character

    def __hash__(self):
        CountedCharacter.num_looked_up += 1
        return hash(self.character)

    def __eq__(self, other):
        return self.character == other


@pytest.mark.parametrize("stops", [["a" * 200], [f"{'a' * 9}{n:05}" for n in range(10_000)]])
def test_a_character_takes_a_few_steps_however_many_strings_there_are(stops):
    automaton, state = StopStrings(stops), 0
    CountedCharacter.num_looked_up = 0
    for character in ("a" * 99 + "b") * 100:
        state, length = automaton.step(state, CountedCharacter(character))
        assert not length
    assert CountedCharacter.num_looked_up <= 3 * 100 * 100
