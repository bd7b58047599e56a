import numpy as np
from keras import ops

from keras_deepseek.backend.loss_means import collect_loss_means, declare_mean_over


def test_what_layers_say_is_heard_in_the_block_and_nowhere_else():
    declare_mean_over(1)
    with collect_loss_means() as outer:
        declare_mean_over(2)
        with collect_loss_means() as inner:
            declare_mean_over(ops.convert_to_tensor(3.5))
        declare_mean_over(np.int64(4))
    declare_mean_over(5)
    assert [float(mean) for mean in outer] == [2.0, 4.0]
    assert [float(mean) for mean in inner] == [3.5]
