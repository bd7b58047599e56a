from types import SimpleNamespace

import numpy as np

from keras_deepseek.layers.attention.self_attention_call import read_self_attention

LAYER = SimpleNamespace(name="attention", use_causal_mask=True)
X, MASK, CACHE = np.ones((1, 2, 3), "float32"), np.ones((1, 2), bool), {"key": 1}


def test_what_is_the_layer_s_own_stays_and_the_same_tensor_goes():
    args, kwargs = read_self_attention(LAYER, (X, MASK, CACHE), {"training": True})
    assert args[0] is X
    assert args[1:] == (MASK, CACHE)
    assert kwargs == {"training": True}
    args, kwargs = read_self_attention(
        LAYER, (), {"query": X, "value": X, "key": None, "use_causal_mask": True, "mask": MASK}
    )
    assert args == (X,)
    assert kwargs == {"mask": MASK}
