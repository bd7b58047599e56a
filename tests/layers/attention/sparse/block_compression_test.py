import keras
import numpy as np

from keras_deepseek.layers.attention.sparse.native_sparse_branches import BlockCompression
from keras_deepseek.testing import assert_close
from tests.oracles.native_sparse_attention import compress
from tests.oracles.parity import named_weights


def test_a_block_is_compressed_knowing_its_places():
    layer = BlockCompression(
        5,
        use_bias=True,
        kernel_initializer=keras.initializers.GlorotUniform(),
        bias_initializer=keras.initializers.Ones(),
        name="compress_key",
    )
    x = np.random.default_rng(0).normal(size=(12, 2, 3)).astype("float32")
    blocks = x.reshape(3, 4, 2, 3).transpose(2, 0, 1, 3)[None]
    outputs = layer(blocks)
    weights = {
        f"compress_key/{name}": keras.ops.convert_to_numpy(weight)
        for name, weight in named_weights(layer).items()
    }
    expected = compress(x, weights, "compress_key", 4, 4)
    assert_close(keras.ops.convert_to_numpy(outputs)[0], expected)
    assert layer.compute_output_shape((None, 2, 3, 4, 3)) == (None, 3, 2, 3)
    turned = keras.ops.convert_to_numpy(layer(blocks[:, :, :, ::-1]))
    assert not np.allclose(turned, keras.ops.convert_to_numpy(outputs))
