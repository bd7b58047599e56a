from contextvars import ContextVar

import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend.call_context import (
    collect_loss_means,
    is_gradient_free,
    known_size,
    set_loss_normalizer,
    set_temporarily,
    with_free_sizes,
    without_gradients,
)

NUMBER: ContextVar[int] = ContextVar("number", default=0)


def test_a_value_holds_until_its_block_ends():
    with set_temporarily(NUMBER, 1) as number:
        assert number == NUMBER.get() == 1
        with set_temporarily(NUMBER, 2):
            assert NUMBER.get() == 2
        assert NUMBER.get() == 1
    assert NUMBER.get() == 0


def test_a_value_is_put_back_behind_an_error():
    with pytest.raises(ValueError, match="broken"), set_temporarily(NUMBER, 1):
        raise ValueError("broken")
    assert NUMBER.get() == 0


def test_only_the_block_is_free_of_gradients():
    assert not is_gradient_free()
    with without_gradients():
        with without_gradients():
            assert is_gradient_free()
        assert is_gradient_free()
    assert not is_gradient_free()


def test_an_error_ends_it():
    with pytest.raises(ValueError, match="broken"), without_gradients():
        raise ValueError("broken")
    assert not is_gradient_free()


def test_normalizers_are_collected_only_in_the_block():
    set_loss_normalizer(1)
    with collect_loss_means() as outer:
        set_loss_normalizer(2)
        with collect_loss_means() as inner:
            set_loss_normalizer(ops.convert_to_tensor(3.5))
        set_loss_normalizer(np.int64(4))
    set_loss_normalizer(5)
    assert [float(mean) for mean in outer] == [2.0, 4.0]
    assert [float(mean) for mean in inner] == [3.5]


class Free(int):
    """A size that is free in a program."""


def test_a_free_size_is_not_known():
    assert known_size(Free(3)) == known_size(3) == 3
    assert known_size(None) is None
    assert known_size(ops.convert_to_tensor(3)) is None
    with with_free_sizes():
        assert known_size(Free(3)) is None
        assert known_size(3) == 3
        with with_free_sizes(knows_others=False):
            assert known_size(3) is None
    assert known_size(Free(3)) == 3
