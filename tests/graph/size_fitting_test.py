"""Expressions of numbers that were not recorded."""

from keras_deepseek.graph.size_expressions import Arithmetic, InputAxis, Size, evaluate
from keras_deepseek.graph.size_fitting import SizeFinder

LENGTH = InputAxis(0, 1)


def find(lengths, function, num_fitted=4):
    finder = SizeFinder([{LENGTH: length} for length in lengths], num_fitted)
    return finder.find([function(length) for length in lengths])


def test_the_next_expression_is_tried_after_one_that_fails_a_check():
    lengths = [11, 16, 22, 4123, 12, 1, 2]
    size = find(lengths, lambda length: -(-length // 3))
    assert size == 4
    assert all(
        evaluate(size.expression, {LENGTH: length}.__getitem__) == -(-length // 3)
        for length in range(1, 500)
    )


def test_a_recorded_expression_that_does_not_hold_is_not_used():
    finder = SizeFinder([{LENGTH: length} for length in (11, 16, 22, 4123)], 4)
    size = finder.find([Size(22, Arithmetic("add", LENGTH, 11)), 32, 44, 8246])
    assert evaluate(size.expression, {LENGTH: 50}.__getitem__) == 100


def test_a_bool_counts_as_a_number():
    size = Size(5, LENGTH) + True
    assert evaluate(size.expression, {LENGTH: 9}.__getitem__) == 10
