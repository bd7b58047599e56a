"""A language model without tensors, behind the interface `RowModel`, and a tokenizer of bytes.

A cache is the list of its tokens, and the next token is a function of the prompt and the answer so
far. The model checks that each row holds its own tokens, each at its position, and fails on demand.
"""

import codecs
import itertools
import threading
import zlib

import numpy as np

from keras_deepseek.inference.text.text_engine import TextEngine
from keras_deepseek.text.row_model import RowOutputs

END_TOKEN = 0
NUM_TOP = 20


def next_token(prompt, answer, uniform=0.0):
    """Returns a printable character or, rarely, the end token."""
    number = zlib.crc32(bytes([*prompt, *answer, int(uniform * 256)]))
    return END_TOKEN if number % 41 == 0 else 32 + number % 95


def answer_alone(prompt, max_tokens, uniforms=None):
    """Returns the tokens of the answer to a prompt that is alone."""
    answer = []
    for uniform in itertools.islice(uniforms or itertools.repeat(0.0), max_tokens):
        answer.append(next_token(prompt, answer, uniform))
        if answer[-1] == END_TOKEN:
            break
    return answer


class Clock:
    """Virtual seconds."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def make_outputs(tokens, is_finite=None):
    """Returns outputs in which each token is the best one, and those after it are next."""
    tokens = np.array(tokens, "int32")
    ranks = np.arange(NUM_TOP)
    return RowOutputs(
        tokens=tokens,
        is_finite=np.ones(len(tokens), bool) if is_finite is None else np.array(is_finite),
        log_probabilities=(-tokens / np.float32(100)).astype("float32"),
        top_tokens=tokens[:, None] + ranks.astype("int32"),
        top_log_probabilities=(-tokens[:, None] / np.float32(100) - ranks).astype("float32"),
    )


class FakeRowModel:
    """The model.

    `failures` has errors by the name of the method that raises them next. `is_bad(prompt)` is true
    for a prompt whose logits are not finite. `hold` stops it in a later call.
    """

    vocabulary_size = 256
    max_length = None

    def __init__(
        self, choose=next_token, *, chunk_seconds=0.1, step_seconds=0.045, resize_seconds=0.0
    ):
        self.choose = choose
        self.clock = Clock()
        self.num_compilations = 0
        self.failures = {}
        self.is_bad = lambda prompt: False
        self.is_held = threading.Event()
        self._is_released = threading.Event()
        self._hold = ("", 0)
        self.rows = None
        self.num_steps = 0
        self.longest_gap = 0.0
        """The longest time between two tokens of a row."""
        self._chunk_seconds, self._step_seconds = chunk_seconds, step_seconds
        self._resize_seconds = resize_seconds

    def hold(self, name="", number=1):
        """Stops the model in a call: of any method, or the `number`th one of a method."""
        self.is_held.clear()
        self._is_released.clear()
        self._hold = (name, number)

    def release(self):
        self._hold = ("", 0)
        self._is_released.set()

    def make(self, rows, slots):
        self._run("make")
        self.rows, self.slots = [None] * rows, slots

    def resize(self, slots, sources):
        self._run("resize", self._resize_seconds)
        self.rows = [None if source is None else self.rows[source] for source in sources]
        self.slots = slots
        assert all(row is None or len(row["tokens"]) < slots for row in self.rows)

    def begin(self, prompt_length):
        self._run("begin")
        return []

    def read(self, cache, token_ids, start, *, sampling=None, prompt=(), uniform=0.0, targets=None):
        self._run("read", self._chunk_seconds)
        assert len(cache) == start
        cache = [*cache, *token_ids]
        prompt_outputs = None if targets is None else make_outputs(list(targets))
        if sampling is None:
            return cache, None, prompt_outputs
        assert cache == list(prompt)
        self._first_token = self.choose(cache, [], uniform)
        return cache, make_outputs([self._first_token], [not self.is_bad(cache)]), prompt_outputs

    def place(self, cache, row, prompt, sampling):
        self._run("place")
        assert cache == list(prompt)
        assert len(cache) < self.slots
        self.rows[row] = {
            "tokens": cache,
            "next": self._first_token,
            "prompt": len(cache),
            "time": self.clock.now,
        }

    def decode(self, tokens, positions, is_active, uniforms):
        self._run("decode", self._step_seconds)
        self.num_steps += 1
        assert len(tokens) == len(positions) == len(is_active) == len(uniforms) == len(self.rows)
        outputs, is_finite = [], []
        for row, token, position, is_used, uniform in zip(
            self.rows, tokens, positions, is_active, uniforms, strict=True
        ):
            if not is_used:
                outputs.append(-1)
                is_finite.append(False)
                continue
            assert token == row["next"]
            assert position == len(row["tokens"]) < self.slots
            row["tokens"].append(token)
            prompt, answer = row["tokens"][: row["prompt"]], row["tokens"][row["prompt"] :]
            row["next"] = self.choose(prompt, answer, uniform)
            self.longest_gap = max(self.longest_gap, self.clock.now - row["time"])
            row["time"] = self.clock.now
            outputs.append(row["next"])
            is_finite.append(not self.is_bad(prompt))
        return make_outputs(outputs, is_finite)

    def warm_up(self, shapes, report):
        report(1, 1)

    def _run(self, name, seconds=0.0):
        held_name, number = self._hold
        if number and held_name in ("", name):
            self._hold = (held_name, number - 1)
            if number == 1:
                self.is_held.set()
                assert self._is_released.wait(60)
        self.clock.now += seconds
        if (error := self.failures.pop(name, None)) is not None:
            if name in ("resize", "place", "decode"):
                self.rows = None  # The tensors were given away.
            raise error


class ByteDecoder:
    def __init__(self, skip_special_tokens):
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._skips = skip_special_tokens

    def push(self, token_id):
        if token_id == END_TOKEN:
            return "" if self._skips else "<end>"
        return self._decoder.decode(bytes([token_id]))

    def finish(self):
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    """A token is a byte, and the end token is the byte 0."""

    most_bytes_per_token = 1

    def __init__(self):
        self.num_tokenized = 0

    def tokenize(self, texts, *, add_special_tokens=True):
        self.num_tokenized += 1
        return list(texts.encode())

    def detokenize(self, token_ids, *, skip_special_tokens=True):
        decoder = ByteDecoder(skip_special_tokens)
        return "".join(map(decoder.push, token_ids)) + decoder.finish()

    def stream(self, *, skip_special_tokens=True):
        return ByteDecoder(skip_special_tokens)


def start_engine(model, tokenizer=None, **settings):
    """Returns a started engine in the time of its model."""
    settings = {"chunk_size": 16, "end_tokens": [END_TOKEN], "clock": model.clock, **settings}
    engine = TextEngine(model, tokenizer or ByteTokenizer(), **settings)
    engine.start()
    return engine
