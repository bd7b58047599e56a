"""A driver of a `RowModel`: reads prompts into rows and decodes them, each with its own noise."""

import numpy as np

from keras_deepseek.models.generation.row_steps import RowSteps
from keras_deepseek.text.sampling import SamplingOptions

GREEDY = SamplingOptions(temperature=0.0)
CHUNK = 8


class Row:
    """A sequence in a row: its text, and what each step gave and got."""

    def __init__(self, prompt, sampling, seed):
        self.prompt, self.sampling, self.text = prompt, sampling, list(prompt)
        self.noise = np.random.default_rng([seed, 0])
        self.uniforms, self.outputs, self.prompt_outputs = [], [], []

    @property
    def answer(self):
        return self.text[len(self.prompt) :]

    def draw(self):
        self.uniforms.append(self.noise.random())
        return self.uniforms[-1]

    def take(self, outputs, index):
        self.text.append(int(outputs.tokens[index]))
        self.outputs.append(
            {name: None if array is None else array[index] for name, array in vars(outputs).items()}
        )


class RowDriver:
    """Keeps the rows of a model, as a server would."""

    def __init__(self, steps, rows, slots, chunk_size=CHUNK):
        self.steps, self.rows, self.chunk_size = steps, [None] * rows, chunk_size
        steps.make(rows, slots)

    def begin(self, index, prompt, sampling=GREEDY, seed=0, *, has_targets=False):
        row, size = Row(prompt, sampling, seed), self.chunk_size
        cache = self.steps.begin(len(prompt))
        for start in range(0, len(prompt), size):
            stop = min(start + size, len(prompt))
            options = {"targets": prompt[start + 1 : stop + 1]} if has_targets else {}
            if stop == len(prompt):
                options |= {"sampling": sampling, "prompt": prompt, "uniform": row.draw()}
            cache, outputs, details = self.steps.read(cache, prompt[start:stop], start, **options)
            row.prompt_outputs.append(details)
        row.take(outputs, 0)
        self.steps.place(cache, index, prompt, sampling)
        self.rows[index] = row
        return row

    def decode(self, times=1):
        for _ in range(times):
            outputs = self.steps.decode(
                [row.text[-1] if row else 0 for row in self.rows],
                [len(row.text) - 1 if row else 0 for row in self.rows],
                [row is not None for row in self.rows],
                [row.draw() if row else 0.0 for row in self.rows],
            )
            for index, row in enumerate(self.rows):
                if row is not None:
                    row.take(outputs, index)

    def resize(self, slots, sources):
        self.steps.resize(slots, sources)
        self.rows = [None if source is None else self.rows[source] for source in sources]


def drive(model, rows, slots):
    return RowDriver(RowSteps(model, chunk_size=CHUNK), rows, slots)
