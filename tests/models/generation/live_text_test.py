import io

from rich.console import Console

from keras_deepseek.models.command import LiveText


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def show(pieces, **console):
    clock, file = Clock(), io.StringIO()
    with LiveText(Console(file=file, width=60, **console), clock) as live:
        clock.now = 1.5
        for piece in pieces:
            live.push(piece)
            clock.now += 0.5
    return file.getvalue(), live.describe()


def test_a_file_gets_the_text_alone():
    text, _ = show(["one [red]", " two\n", "three"], force_terminal=False)
    assert text == "one [red] two\nthree\n"


def test_a_file_gets_every_character_as_it_is():
    pieces = ["a\tb\n", "\tx = 1\r\n", "a\x0cb\x07c", "\x1b[0m", "tail   \n\n", "x" * 200]
    assert show(pieces, force_terminal=False)[0] == "".join(pieces) + "\n"


def test_a_terminal_shows_the_text_and_how_fast_it_comes():
    text, _ = show(["one", " two\n", "three"], force_terminal=True)
    assert "one two\n" in text
    assert "2 tokens, the first after 1.50 s, then 2.0 tokens/s" in text
    assert text.rstrip().endswith("three")


def test_the_pace_leaves_the_prompt_out():
    assert show([], force_terminal=False) == ("", "0 tokens")
    assert show(["a"], force_terminal=False)[1] == "1 token, the first after 1.50 s"
    assert show(["a"] * 5, force_terminal=False)[1].endswith("then 2.0 tokens/s")


def test_a_model_can_not_steer_the_terminal():
    text, _ = show(["red \x1b[31m\x07", "\x9b2J\n", "\tend"], force_terminal=True)
    assert "red \u241b[31m\u2407\ufffd2J\n" in text
    assert show(["a\x1bb"], force_terminal=False)[0] == "a\x1bb\n"
