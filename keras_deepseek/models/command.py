"""The command `keras-deepseek generate`, which generates text with a preset."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from rich.console import Console
from rich.live import Live
from rich.text import Text

from keras_deepseek.command_parser import add_backend_flag

NAME = "generate"
HELP = "continue a prompt with a language model, and show the text as it is generated"
_NO_READER = 141  # 128 plus the number of SIGPIPE.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `generate` to its parser."""
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="a folder that `save_to_preset` or transformers wrote, or a model on the Hugging Face "
        "hub, as in hf://deepseek-ai/DeepSeek-V2-Lite",
    )
    parser.add_argument(
        "--prompt",
        required=True,
        metavar="TEXT",
        help="the text to continue; - reads it from the standard input",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="format the prompt with the model's chat template, or its family's message format",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        metavar="N",
        help="the most tokens to generate (default: 256)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="a text that ends the answer, beside the model's end token; may be repeated",
    )
    _add_sampling_arguments(parser.add_argument_group("sampling"))
    parser.add_argument("--dtype", help="the dtype policy, as in bfloat16 (default: Keras's)")
    add_backend_flag(parser)


def _add_sampling_arguments(group: Any) -> None:
    group.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="0 is greedy (default: 0, or 1 if another sampling option is given)",
    )
    group.add_argument("--top-k", type=int, metavar="K", help="keep the K most likely tokens")
    group.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="keep the most likely tokens up to a total probability of P",
    )
    group.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="keep tokens that are at least P times as likely as the most likely one",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="F",
        help="above 1 makes repeated tokens less likely (default: 1)",
    )
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")


def run(arguments: argparse.Namespace) -> None:
    """Generates text and writes it to the standard output."""
    sampler = _make_sampler(arguments)
    _check_before_loading(arguments)
    from keras_deepseek.models import CausalLM
    from keras_deepseek.models.command import LiveText, OutputConsole
    from keras_deepseek.models.generation.generation import TextStream
    from keras_deepseek.models.generation.prompts import find_end_tokens
    from keras_deepseek.text.stop_strings import StopFilter, StopStrings

    model = CausalLM.from_preset(arguments.folder, dtype=arguments.dtype)
    prompt = _read_prompt(arguments, model.tokenizer)
    stream = model.stream(
        prompt, max_new_tokens=arguments.max_new_tokens, sampler=sampler, seed=arguments.seed
    )
    pieces = TextStream(model.tokenizer, prompt, find_end_tokens(model))
    stops = StopFilter(StopStrings(arguments.stop))
    try:
        with LiveText(OutputConsole(highlight=False, markup=False, emoji=False)) as live:
            for token in stream:
                live.push(stops.push(pieces.push(token)))
                if stops.is_stopped:
                    break
            live.add(stops.push(pieces.finish()) + stops.finish())
    except BrokenPipeError:
        _end_without_reader()
    print(live.describe(), file=sys.stderr)


def _end_without_reader() -> NoReturn:
    """Exits with the code of a program whose output pipe was closed, as by `head -1`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at exit.
    raise SystemExit(_NO_READER)


def _check_before_loading(arguments: argparse.Namespace) -> None:
    """Checks the command's arguments before the model is loaded, which may take minutes."""
    from keras_deepseek.checks import check_integer
    from keras_deepseek.models.checkpoints.preset_folder import find_preset, read_chat_style
    from keras_deepseek.models.tokenizers.tokenizer_files import (
        find_chat_template,
        read_chat_templates,
        read_tokenizer_files,
    )

    check_integer("max_new_tokens", arguments.max_new_tokens)
    if arguments.seed is not None:
        check_integer("seed", arguments.seed, minimum=0)
    if arguments.chat:
        folder = find_preset(arguments.folder)
        templates = read_chat_templates(read_tokenizer_files(folder))
        if templates or read_chat_style(folder) is None:
            find_chat_template(templates, "default")


def _make_sampler(arguments: argparse.Namespace) -> Any:
    from keras_deepseek.models.generation.sampler import Sampler

    names = ("top_k", "top_p", "min_p")
    steps = {name: getattr(arguments, name) for name in names}
    is_drawn = any(step is not None for step in steps.values()) or arguments.seed is not None
    temperature = arguments.temperature
    if temperature is None:
        temperature = 1.0 if is_drawn else 0.0
    return Sampler(temperature, **steps, repetition_penalty=arguments.repetition_penalty)


def _read_prompt(arguments: argparse.Namespace, tokenizer: Any) -> list[int]:
    from keras_deepseek.errors import InvalidInputError
    from keras_deepseek.models.generation.prompts import check_tokens

    if tokenizer is None:
        raise InvalidInputError(
            f"{arguments.folder!r} has no `tokenizer.json`, or the package `tokenizers` is not "
            "installed: pip install 'keras_deepseek[text]'."
        )
    text = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    if not arguments.chat:
        tokens = tokenizer.tokenize(text)
    else:
        text = tokenizer.apply_chat_template([{"role": "user", "content": text}])
        tokens = tokenizer.tokenize(text, add_special_tokens=False)
    check_tokens(text, tokens)
    return [int(token) for token in tokens]


_REFRESHES = 12
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class OutputConsole(Console):
    """A console that raises `BrokenPipeError` if the output pipe is closed.

    Rich would exit with code 1.
    """

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class LiveText:
    """A display of text that arrives in pieces, with tokens per second below it on a terminal.

    Complete lines are printed once; only the last line is redrawn. A file or a pipe gets only the
    text. Use it in a `with` block. The clock returns seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.perf_counter) -> None:
        self._console = console
        self._clock = clock
        self._line = ""
        self._num_tokens = 0
        self._begin = self._first = self._last = clock()
        self._live = Live(
            console=console, refresh_per_second=_REFRESHES, transient=True, auto_refresh=False
        )
        self._shown = -1.0

    def __enter__(self) -> "LiveText":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._console.is_terminal:
            self._live.stop()
            self._write(self._line, end="\n")
        elif self._num_tokens:
            self._write("", end="\n")

    def push(self, piece: str) -> None:
        """Shows the text that one more token adds, possibly empty, and counts the token."""
        self._num_tokens += 1
        self._last = self._clock()
        if self._num_tokens == 1:
            self._first = self._last
        self.add(piece)

    def add(self, piece: str) -> None:
        """Shows text without counting a token."""
        if not self._console.is_terminal:
            self._write(piece, end="")
            return
        *complete, self._line = (self._line + piece).split("\n")
        for line in complete:
            self._write(line, end="\n")
        if self._last - self._shown >= 1 / _REFRESHES:
            self._shown = self._last
            text = self._show(self._line).append(f"\n{self.describe()}")
            self._live.update(text, refresh=True)

    def _show(self, text: str) -> Text:
        """Returns a text with control characters replaced by visible symbols."""
        return Text(text.translate(_PICTURES))

    def _write(self, text: str, end: str) -> None:
        if self._console.is_terminal:
            self._console.print(self._show(text), end=end, soft_wrap=True)
            return
        self._console.file.write(
            text + end
        )  # Rich would expand tabs and remove control characters.
        self._console.file.flush()

    def describe(self) -> str:
        """Returns a line with the token count, the first token's wait, and tokens per second."""
        if not self._num_tokens:
            return "0 tokens"
        words = f"{self._num_tokens} token{'s' if self._num_tokens > 1 else ''}"
        words += f", the first after {self._first - self._begin:.2f} s"
        if self._last > self._first:
            rate = (self._num_tokens - 1) / (self._last - self._first)
            words += f", then {rate:.1f} tokens/s"
        return words
