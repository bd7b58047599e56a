import io

from rich.console import Console

from keras_deepseek.models.checkpoints.load_display import LoadDisplay


def show(seconds, *, is_terminal=True, **arguments):
    """Returns what is printed where half of the bytes have come after some seconds."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=100)
    times = iter([0.0, seconds, seconds])
    display = LoadDisplay(
        "Loading it", 2 * 10**6, console=console, clock=lambda: next(times), **arguments
    )
    with display as advance:
        advance(10**6)
    return output.getvalue()


def test_a_long_load_shows_how_much_has_come():
    assert "Loading it" in show(1.5)
    assert "1.0/2.0 MB" in show(1.5)


def test_a_short_one_shows_nothing():
    assert show(0.5) == ""


def test_nothing_is_shown_where_no_terminal_is_or_none_is_wanted():
    assert show(1.5, is_terminal=False) == ""
    assert show(1.5, is_shown=False) == ""
