import pytest

from keras_deepseek.training.launch.plan import joins_itself


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import keras_deepseek.training as t\nif True:\n    t.join_cluster()", True),
        ("from keras_deepseek.training import Trainer, join_cluster as join", True),
        ("import jax\njax.distributed.initialize('127.0.0.1:1', 2, 0)", True),
        ("from keras import distribution\ndistribution.initialize()", True),
        ("import tensorflow as tf\ns = tf.distribute.MultiWorkerMirroredStrategy()", True),
        ("import keras\nkeras.distribution.DataParallel()", True),
        ("# join_cluster() is not needed\nprint('join_cluster')", False),
        ("import keras\nkeras.initializers.Zeros()\nwandb.initialize()", False),
        ("import enum\nclass SplitStrategy(enum.Enum):\n    A = 1\nSplitStrategy.A", False),
        ("import keras_deepseek as k\nk.training.Trainer(m, distributed_strategy='a')", False),
    ],
)
def test_a_script_that_says_how_to_join_is_known_by_its_names(tmp_path, source, expected):
    script = tmp_path / "train.py"
    script.write_text(source)
    assert joins_itself(str(script)) == expected
