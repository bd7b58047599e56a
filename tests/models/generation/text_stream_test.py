from keras_deepseek.models.generation.text_stream import stream_text
from tests.oracles.small_language_model import WordTokenizer


def test_a_character_of_two_tokens_comes_whole():
    stream = stream_text(WordTokenizer(), [0, 1])
    assert [stream.push(token) for token in (5, 3, 4, 0)] == ["word ", "", "\u00e9", "a"]
    assert stream.finish() == ""


def test_what_is_held_back_comes_at_the_end():
    stream = stream_text(WordTokenizer(), [])
    assert stream.push(0) == "a"
    assert stream.push(3) == ""
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


class SpacingTokenizer:
    """A tokenizer that drops the space before the first word, as SentencePiece does."""

    def detokenize(self, tokens):
        return "".join(f" w{token}" for token in tokens).removeprefix(" ")


def test_a_space_before_a_word_is_not_lost():
    stream = stream_text(SpacingTokenizer(), [7])
    assert [stream.push(token) for token in (1, 2)] == [" w1", " w2"]
