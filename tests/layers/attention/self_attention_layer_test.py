import pytest

from keras_deepseek.artifacts import InvalidInputError
from tests.oracles.attention_layers import ATTENTIONS, make_attention


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_cache_has_the_given_sizes(name):
    layer = make_attention(name)
    cache = layer.make_cache(batch_size=2, max_length=6)
    assert tuple(cache["mask"].shape) == (2, 6)
    assert {tensor.shape[0] for tensor in cache.values()} == {2}
    for sizes in ((2, 0), (2, 1.5), (-1, 6)):
        with pytest.raises(InvalidInputError, match=r"must be"):
            layer.make_cache(*sizes)
