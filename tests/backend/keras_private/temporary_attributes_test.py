import types

import pytest

from keras_deepseek.backend.keras_private.temporary_attributes import (
    own_attributes,
    temporary_attributes,
)


def test_values_are_put_back_also_after_an_error():
    owner = types.SimpleNamespace(a=1, b=2, c=3)

    def fail():
        with temporary_attributes(owner, a=10, b=20):
            assert (owner.a, owner.b, owner.c) == (10, 20, 3)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (owner.a, owner.b, owner.c) == (1, 2, 3)


def test_an_attribute_that_is_not_there_is_none_to_lend():
    owner = types.SimpleNamespace(a=1)
    with pytest.raises(AttributeError, match="b"), temporary_attributes(owner, a=2, b=3):
        pass
    assert owner.a == 1


def test_an_object_has_attributes_of_its_own_until_the_end():
    class Owner:
        a = b = 1

    owner = Owner()
    owner.b = 2
    with own_attributes(owner, a=10, b=20):
        assert (owner.a, owner.b) == (10, 20)
    assert (owner.a, owner.b) == (1, 2)
    assert "a" not in vars(owner)
