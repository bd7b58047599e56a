import json

import pytest

from keras_deepseek.errors import CheckpointError, InvalidInputError
from keras_deepseek.models.tokenizers.tokenizer_files import (
    check_vocabulary,
    count_vocabulary,
    read_chat_templates,
    read_json_file,
    read_special_tokens,
    read_tokenizer_files,
)


def files(content):
    return {"tokenizer.json": json.dumps(content).encode()}


def test_the_files_of_the_tokenizer_alone_are_read(tmp_path):
    for name in ("tokenizer.json", "config.json", "vocab.txt", "notes.md"):
        (tmp_path / name).write_text(name)
    (tmp_path / "merges.txt").mkdir()
    assert read_tokenizer_files(tmp_path) == {
        "tokenizer.json": b"tokenizer.json",
        "vocab.txt": b"vocab.txt",
    }


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ({"model": {"vocab": {"a": 0, "b": 6}}}, 7),
        ({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 9, "content": "<s>"}]}, 10),
        ({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}, 2),
        ({"model": {"vocab": {}}, "added_tokens": None}, 0),
    ],
)
def test_the_vocabulary_ends_behind_the_largest_id(content, count):
    assert count_vocabulary(files(content)) == count


def test_without_a_tokenizer_there_is_no_vocabulary():
    assert count_vocabulary({}) is None
    check_vocabulary({}, 1)


@pytest.mark.parametrize("content", [{}, {"model": 3}, {"model": {"vocab": {"a": "b"}}}, []])
def test_a_file_that_is_no_tokenizer_is_told(content):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json' (has no vocab|must hold a JSON)"):
        count_vocabulary(files(content))


def test_a_vocabulary_that_does_not_fit_is_told():
    content = files({"model": {"vocab": {"a": 0, "b": 6}}})
    check_vocabulary(content, 7)
    with pytest.raises(
        InvalidInputError, match="ids up to 6, and the model has embeddings for only 6"
    ):
        check_vocabulary(content, 6)


def test_special_tokens_are_read_from_both_files():
    content = {
        "special_tokens_map.json": b'{"pad_token": "<pad>", "eos_token": "old"}',
        "tokenizer_config.json": json.dumps(
            {"eos_token": {"content": "</s>"}, "bos_token": None, "add_bos_token": True}
        ).encode(),
    }
    assert read_special_tokens(content) == {"pad_token": "<pad>", "eos_token": "</s>"}
    assert read_special_tokens({}) == {}


def test_chat_templates_are_told_by_their_names():
    several = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    for templates, expected in (
        ("D", {"default": "D"}),
        (several, {"default": "D", "tool_use": "T"}),
        ([], {}),
        (None, {}),
    ):
        content = json.dumps({"chat_template": templates}).encode()
        assert read_chat_templates({"tokenizer_config.json": content}) == expected
    assert read_chat_templates({}) == {}


@pytest.mark.parametrize(
    "templates", [5, {"a": 1}, ["D"], [{"name": "x"}], [{"name": 1, "template": ""}]]
)
@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.json"])
def test_chat_templates_that_are_none_are_told_with_their_file(file, templates):
    content = {file: json.dumps({"chat_template": templates}).encode()}
    with pytest.raises(CheckpointError, match=rf"`chat_template` in '{file}' must be a string, or"):
        read_chat_templates(content)


def test_a_torn_file_is_told():
    with pytest.raises(CheckpointError, match=r"'x\.json' is not JSON"):
        read_json_file({"x.json": b"{"}, "x.json")
    with pytest.raises(CheckpointError, match=r"'x\.json' must hold a JSON object"):
        read_json_file({"x.json": b"[]"}, "x.json")
