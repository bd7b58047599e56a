import io
import threading

from rich.console import Console

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.server.live_line import LiveLine, LiveStatistics, format_statistics


class Output(io.StringIO):
    """Tells when something is written to it."""

    def __init__(self):
        super().__init__()
        self.lines = threading.Semaphore(0)

    def write(self, text):
        if "requests/s" in text:
            self.lines.release()
        return super().write(text)


def test_what_is_unknown_is_shown_as_such():
    line = format_statistics(LiveStatistics(0.0, None, None, None, 0.0, 0))
    assert line == "0 requests/s · batch – · p50 – · p99 – · 0 % busy · 0 waiting"  # noqa: RUF001


def test_answers_of_language_models_follow_where_there_are_any():
    statistics = LiveStatistics(
        2.0, None, None, None, 0.0, 1, tokens_per_second=1234.5, running_answers=3
    )
    assert format_statistics(statistics).endswith("1 waiting · 3 answers, 1,234 tokens/s")


def test_a_terminal_is_kept_up_to_date(doubler):
    output = Output()
    console = Console(
        file=output, force_terminal=True, width=120, highlight=False, _environ={"TERM": "xterm"}
    )
    with ServingEngine(doubler) as engine:
        with LiveLine(engine, console, seconds=0.001):
            assert output.lines.acquire(timeout=60)
            assert output.lines.acquire(timeout=60)
        written = output.getvalue()
        assert "0 requests/s · batch" in written
        assert not any(thread.name == "live-line" for thread in threading.enumerate())
        assert output.getvalue() == written


def test_nothing_is_shown_where_nobody_looks(doubler):
    output = Output()
    with ServingEngine(doubler) as engine, LiveLine(engine, Console(file=output), seconds=0.001):
        assert not any(thread.name == "live-line" for thread in threading.enumerate())
    assert output.getvalue() == ""
