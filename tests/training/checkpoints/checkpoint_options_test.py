import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.checkpoints.checkpoints import CheckpointOptions


def test_options_without_a_folder_are_refused():
    assert CheckpointOptions().best() == (None, "min", 0)
    for options in ({"checkpoint_every": 5}, {"keep_last": 3}, {"keep_best": ("loss", "min")}):
        with pytest.raises(InvalidInputError, match=f"`{min(options)}` needs .*checkpoint_dir="):
            CheckpointOptions(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"checkpoint_dir": ""}, "the path of a folder"),
        ({"checkpoint_dir": 3}, "received 3"),
        ({"checkpoint_every": 0}, "`checkpoint_every`"),
        ({"keep_last": 0}, "`keep_last`"),
        ({"keep_best": ("loss", "less")}, "`keep_best` must be the name of a log"),
        ({"keep_best": ("loss", "min", 0)}, r"1 or more, .*; received \('loss', 'min', 0\)"),
    ],
)
def test_invalid_options_are_named(tmp_path, options, match):
    with pytest.raises(InvalidInputError, match=match):
        CheckpointOptions(**{"checkpoint_dir": tmp_path, **options})


def test_keep_best_keeps_one_by_default(tmp_path):
    def best(*keep_best):
        return CheckpointOptions(tmp_path, keep_best=keep_best).best()

    assert best("val_loss", "min") == ("val_loss", "min", 1)
    assert best("accuracy", "max", 3) == ("accuracy", "max", 3)
