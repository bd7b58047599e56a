import logging

import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend.processes.gradient_compression import LowRank
from keras_deepseek.backend.processes.processes import OneProcess, OneReplicaEach
from keras_deepseek.training.step import compression_choice
from keras_deepseek.training.step.compression_choice import choose_compression

SHAPES = [(40, 300), (300,), (300, 50)]


class SlowLink(OneReplicaEach, OneProcess):
    """Two processes that take so many seconds for the sums of each kind, by their own clock."""

    world_size = 2

    def __init__(self, seconds):
        self.seconds = dict(zip((None, "bfloat16", LowRank()), seconds, strict=True))
        self.now = 0.0
        self.shapes = []

    def sum(self, compute, batch, variables):
        return self.sum_as(None, compute, batch)

    def sum_compressed(self, compute, batch, variables, compression):
        shapes = [tuple(variable.shape) for variable in variables]
        assert compression.residual.shape[0] >= sum(map(np.prod, shapes))
        return (*self.sum_as(compression.kind, compute, batch), lambda: None)

    def sum_as(self, kind, compute, batch):
        scalars, finish = compute(0, batch)
        counts, gradients = finish(scalars, None)
        self.now += self.seconds[kind]
        self.shapes.append([tuple(gradient.shape) for gradient in gradients])
        return scalars, counts, [ops.add(gradient, gradient) for gradient in gradients]


@pytest.fixture
def choose(monkeypatch, caplog):
    def choose(seconds, shapes=SHAPES):
        link = SlowLink(seconds)
        monkeypatch.setattr(compression_choice.time, "perf_counter", lambda: link.now)
        with caplog.at_level(logging.INFO):
            return choose_compression(shapes, link, link), link.shapes

    return choose


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ((1.0, 0.9, 0.8), None),
        ((1.0, 0.6, 0.5), "bfloat16"),
        ((1.0, 0.6, 0.2), LowRank()),
        ((1.0, 0.8, 0.6), LowRank()),
        ((0.0, 0.1, 0.1), None),
    ],
    ids=str,
)
def test_what_is_further_from_the_gradients_must_be_much_faster(choose, seconds, chosen):
    assert choose(seconds)[0] == chosen


def test_the_log_says_what_was_measured_and_taken(choose, caplog):
    choose((1.0, 0.6, 0.2))
    assert "float32 1.000 s, bfloat16 0.600 s, LowRank(rank=8) 0.200 s" in caplog.text
    assert "Taken: LowRank(rank=8)" in caplog.text


@pytest.mark.parametrize(
    ("shapes", "sample"),
    [
        (SHAPES, [(300, 50), (40, 300), (300,)]),
        ([(7,), (30_000, 256)], [(2**13, 256)]),
        ([(2**21,), (2, 3), (2**21 - 2,)], [(2**21,)]),
        ([(1, 2**22)], [(1, 2**22)]),
    ],
    ids=["all", "a part of the largest", "the largest", "a row"],
)
def test_the_largest_gradients_are_summed_or_a_part_of_one(choose, shapes, sample):
    _, summed = choose((1.0, 1.0, 1.0), shapes)
    assert all(each == sample for each in summed)


def test_nothing_is_measured_where_nothing_is_sent():
    link = SlowLink((1.0, 1.0, 1.0))
    assert choose_compression([], link, link) is None
