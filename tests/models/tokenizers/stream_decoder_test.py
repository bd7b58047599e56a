import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.models.tokenizers.stream_decoder import StreamDecoder


def decode_bytes(ids):
    return bytes(ids).decode("utf-8", "replace")


def push_all(ids, decode=decode_bytes):
    decoder = StreamDecoder(decode)
    return [*(decoder.push(token_id) for token_id in ids), decoder.finish()]


@pytest.mark.parametrize("text", ["", "abc", "é", "日本語 and 🦊!", "a\u0301"])
def test_a_character_comes_whole_with_its_last_byte(text):
    parts = push_all(text.encode())
    assert "".join(parts) == text
    assert "\ufffd" not in "".join(parts)
    assert sum(1 for part in parts if part) == len(text)


@given(st.text())
def test_any_text_comes_as_it_is(text):
    parts = push_all(text.encode())
    assert "".join(parts) == text
    assert parts[-1] in ("", "\ufffd")


@given(st.lists(st.integers(0, 255), max_size=40))
def test_of_any_bytes_what_was_pushed_is_never_taken_back(ids):
    parts = push_all(ids)
    valid = bytes(ids).decode("utf-8", "ignore")
    assert "".join(parts).replace("\ufffd", "") == valid.replace("\ufffd", "")


def test_bytes_that_never_become_a_character_are_not_held_for_ever():
    parts = push_all([0xFF] * 20)
    assert "".join(parts[:8]).count("\ufffd") == 8
    assert len("".join(parts)) == 20


def test_an_unfinished_character_comes_in_the_end():
    assert push_all("🦊".encode()[:3]) == ["", "", "", "\ufffd"]


def test_a_token_that_reads_otherwise_at_the_beginning_keeps_its_space():
    words = ["▁the", "▁fox", "es", "▁ran"]

    def decode(ids):
        return "".join(words[token_id] for token_id in ids).replace("▁", " ").removeprefix(" ")

    assert push_all([0, 1, 2, 3], decode) == ["the", " fox", "es", " ran", ""]


def test_tokens_without_text_are_no_end():
    def decode(ids):
        return "".join("ab"[token_id] for token_id in ids if token_id < 2)

    assert push_all([0, 2, 2, 1], decode) == ["a", "", "", "b", ""]
