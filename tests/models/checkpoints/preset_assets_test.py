import json

import pytest

from keras_deepseek.errors import CheckpointError
from keras_deepseek.models.checkpoints.preset_assets import read_assets


def write(folder, end_tokens):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end_tokens}))


def test_a_folder_without_small_files_has_none(tmp_path):
    assets = read_assets(tmp_path)
    assert (dict(assets.tokenizer_files), assets.tokenizer) == ({}, None)
    assert assets.generation_config is None


@pytest.mark.parametrize("end_tokens", [None, 0, [3, 4], []])
def test_end_tokens_are_read_as_they_are(tmp_path, end_tokens):
    write(tmp_path, end_tokens)
    assert read_assets(tmp_path).generation_config == {"eos_token_id": end_tokens}


@pytest.mark.parametrize("end_tokens", [-1, "a", [1, "a"], 1.5, True, {"a": 1}])
def test_end_tokens_that_are_none_are_told_with_their_file(tmp_path, end_tokens):
    write(tmp_path, end_tokens)
    with pytest.raises(
        CheckpointError, match=r"`eos_token_id` in '.*generation_config\.json' must"
    ):
        read_assets(tmp_path)
