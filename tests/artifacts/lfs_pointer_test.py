from pathlib import Path

import pytest

from keras_deepseek.artifacts.lfs_pointer import check_not_pointer
from keras_deepseek.errors import CheckpointError


def test_a_pointer_is_told_and_what_else_is_not():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    with pytest.raises(
        CheckpointError, match=r"'b' is a pointer of Git LFS.*`git lfs pull` in 'a'"
    ):
        check_not_pointer(Path("a/b"), pointer)
    check_not_pointer(Path("a/b"), b"version")
