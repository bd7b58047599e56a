from keras_deepseek.models.generation.generation import TextStream
from tests.oracles.small_language_model import WordTokenizer


def test_a_character_of_two_tokens_comes_whole():
    stream = TextStream(WordTokenizer(), [0, 1], ())
    assert [stream.push(token) for token in (5, 3, 4, 0)] == ["word ", "", "\u00e9", "a"]
    assert stream.finish() == ""


def test_what_is_held_back_comes_at_the_end():
    stream = TextStream(WordTokenizer(), [], ())
    assert stream.push(0) == "a"
    assert stream.push(3) == ""
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_end_tokens_leave_no_text_but_in_the_prompt():
    stream = TextStream(WordTokenizer(), [0, 5], {0})
    assert [stream.push(token) for token in (0, 1, 0)] == ["", WordTokenizer().detokenize([1]), ""]
    assert stream.finish() == ""


class SpacingTokenizer:
    """A tokenizer that drops the space before the first word, as SentencePiece does."""

    def detokenize(self, tokens):
        return "".join(f" w{token}" for token in tokens).removeprefix(" ")


def test_a_space_before_a_word_is_not_lost():
    stream = TextStream(SpacingTokenizer(), [7], ())
    assert [stream.push(token) for token in (1, 2)] == [" w1", " w2"]
