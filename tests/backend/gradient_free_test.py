import pytest

from keras_deepseek.backend.gradient_free import is_gradient_free, without_gradients


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
