import keras
import pytest

from keras_deepseek.backend.processes.processes import OneProcess
from keras_deepseek.errors import NotSupportedError
from keras_deepseek.training.cluster.placement import Placement
from keras_deepseek.training.training_cluster import find_replicas


class Pair(OneProcess):
    """One of two processes that make each step together."""

    world_size = 2

    def __init__(self, *, is_one_program):
        self.is_one_program = is_one_program
        self.replicas = self


class OwnStep(keras.Sequential):
    def train_step(self, *arguments):
        return super().train_step(*arguments)


def make(kind=keras.Sequential, **options):
    model = kind([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse", **(options or {"jit_compile": True}))
    return model


def find(model, processes, placement=None, *, is_compressed=False):
    placement = placement or Placement(None, None)
    return find_replicas(model, processes, placement, is_compressed=is_compressed)


def test_processes_with_programs_of_their_own_make_the_step_together():
    pair = Pair(is_one_program=False)
    assert find(make(), pair, is_compressed=True) is pair
    assert find(make(run_eagerly=True), pair) is pair
    assert find(make(), OneProcess()) is None


def test_one_program_is_cut_where_keras_compiles_the_trainers_step():
    pair = Pair(is_one_program=True)
    assert find(make(), pair, is_compressed=True) is pair
    placement = Placement(None, None)
    placement.has_own_distribution = True
    uncut = {
        "distribution of your own": (make(), placement),
        "train_step of its own": (make(OwnStep), None),
        "run_eagerly=True": (make(run_eagerly=True), None),
        "jit_compile=False": (make(jit_compile=False), None),
    }
    for name, (model, placement) in uncut.items():
        assert find(model, pair, placement) is None
        with pytest.raises(NotSupportedError, match=name):
            find(model, pair, placement, is_compressed=True)
