import numpy as np
from keras import ops

from keras_deepseek.backend.loss_means import collect_loss_means, set_loss_normalizer


def test_what_layers_say_is_heard_in_the_block_and_nowhere_else():
    set_loss_normalizer(1)
    with collect_loss_means() as outer:
        set_loss_normalizer(2)
        with collect_loss_means() as inner:
            set_loss_normalizer(ops.convert_to_tensor(3.5))
        set_loss_normalizer(np.int64(4))
    set_loss_normalizer(5)
    assert [float(mean) for mean in outer] == [2.0, 4.0]
    assert [float(mean) for mean in inner] == [3.5]
