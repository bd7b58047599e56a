from contextvars import ContextVar

import pytest

from keras_deepseek.backend.context_values import set_temporarily

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
