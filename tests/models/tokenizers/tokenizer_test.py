import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.errors import CheckpointError, InvalidInputError, MissingExtraError
from keras_deepseek.models.tokenizers.tokenizer import Tokenizer, is_installed
from keras_deepseek.models.tokenizers.tokenizer_files import find_most_bytes_per_token
from tests.oracles.trained_tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, train_tokenizer

pytest.importorskip("tokenizers")

MESSAGES = [{"role": "user", "content": "A fox?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_preset(folder)


def retrained(tmp_path, **config):
    train_tokenizer(tmp_path / "tokenizer", **config)
    return Tokenizer.from_preset(tmp_path / "tokenizer")


@given(st.text(max_size=60))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text


@given(st.text(max_size=60))
def test_any_text_comes_back_token_by_token(tokenizer, text):
    decoder = tokenizer.stream(skip_special_tokens=False)
    parts = [decoder.push(token_id) for token_id in tokenizer.tokenize(text)]
    assert "".join([*parts, decoder.finish()]) == text


@given(st.text(max_size=60) | st.text(" the", min_size=60, max_size=200))
def test_a_text_has_as_many_tokens_as_its_bytes_say(tokenizer, text):
    assert tokenizer.most_bytes_per_token * len(tokenizer.tokenize(text)) >= len(text.encode())


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"added_tokens": [{"id": 0, "content": "<pad>", "special": True, "rstrip": True}]},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}},
    ],
)
def test_where_text_is_dropped_its_bytes_say_nothing(folder, change):
    content = json.loads((folder / "tokenizer.json").read_bytes())
    assert find_most_bytes_per_token(content) > 1
    no_steps = {"type": "Sequence", "normalizers": []}
    assert find_most_bytes_per_token({**content, "normalizer": no_steps}) > 1
    assert find_most_bytes_per_token({**content, **change}) is None


@given(st.lists(st.integers(0, 319), max_size=40))
def test_any_tokens_stream_as_they_are_decoded(tokenizer, ids):
    decoder = tokenizer.stream()
    parts = [*(decoder.push(token_id) for token_id in ids), decoder.finish()]
    expected = tokenizer.detokenize(ids)
    assert "".join(parts).replace("\ufffd", "") == expected.replace("\ufffd", "")


def test_texts_are_padded_on_the_right_for_training(tokenizer):
    short, long = tokenizer.tokenize(["fox", "the lazy dog"])
    batch = tokenizer(["fox", "the lazy dog"])
    num_padding = len(long) - len(short)
    assert batch["token_ids"].tolist() == [[*short, *[0] * num_padding], long]
    assert batch["padding_mask"].tolist() == [[1] * len(short) + [0] * num_padding, [1] * len(long)]
    assert {array.dtype.name for array in batch.values()} == {"int32"}


def test_texts_are_padded_on_the_left_for_generation(tokenizer):
    short, long = tokenizer.tokenize(["fox", "the lazy dog"])
    batch = tokenizer(["fox", "the lazy dog"], padding_side="left")
    num_padding = len(long) - len(short)
    assert batch["token_ids"].tolist() == [[*[0] * num_padding, *short], long]
    assert batch["padding_mask"].tolist() == [[0] * num_padding + [1] * len(short), [1] * len(long)]


@pytest.mark.parametrize(("side", "part"), [("right", slice(2)), ("left", slice(-2, None))])
def test_a_text_of_more_tokens_is_cut_away_from_where_it_goes_on(tokenizer, side, part):
    batch = tokenizer("the lazy dog", sequence_length=2, padding_side=side)
    assert batch["token_ids"].tolist() == [tokenizer.tokenize("the lazy dog")[part]]
    assert batch["padding_mask"].tolist() == [[1, 1]]


def test_no_text_and_empty_texts_make_empty_rows(tokenizer):
    assert tokenizer([])["token_ids"].shape == (0, 0)
    assert tokenizer([""], sequence_length=3)["padding_mask"].tolist() == [[0, 0, 0]]
    assert tokenizer(["", "a"], padding_side="left")["token_ids"].shape == (2, 1)
    assert tokenizer.pad([[1], []], sequence_length=0)["token_ids"].shape == (2, 0)


def test_what_is_no_text_is_told(tokenizer):
    with pytest.raises(InvalidInputError, match="A text must be a string, received 3"):
        tokenizer(["a", 3])
    with pytest.raises(InvalidInputError, match="Unknown padding side 'lefd': did you mean 'left'"):
        tokenizer("a", padding_side="lefd")


@pytest.mark.parametrize("length", [-1, 2.5, "3"])
def test_a_length_that_is_none_is_told(tokenizer, length):
    with pytest.raises(InvalidInputError, match="`sequence_length` must be an integer of at least"):
        tokenizer(["hi"], sequence_length=length)


@pytest.mark.parametrize("texts", [5, None, b"a", {"text": 1}, np.array(5)])
def test_what_is_neither_a_text_nor_several_is_told(tokenizer, texts):
    for call in (tokenizer, tokenizer.tokenize):
        with pytest.raises(InvalidInputError, match="Texts must be a string or a list of strings"):
            call(texts)


@pytest.mark.parametrize("token_ids", [5, None, "abc", {3: 1}, np.array(5)])
def test_what_is_no_row_of_token_ids_is_told(tokenizer, token_ids):
    with pytest.raises(InvalidInputError, match="Token ids must be a list or an array of integers"):
        tokenizer.detokenize(token_ids)


@pytest.mark.parametrize("rows", [5, [5], "abc", [[1.5]], [[10**12]], [["a"]], [[[1]]]])
def test_what_are_no_rows_is_told_before_it_is_padded(tokenizer, rows):
    with pytest.raises(InvalidInputError, match=r"must be (lists|a list) of token ids"):
        tokenizer.pad(rows)
    with pytest.raises(InvalidInputError, match="Unknown padding side 'lefd'"):
        tokenizer.pad([[1]], padding_side="lefd")


@pytest.mark.parametrize(
    "token_ids", [[-1], [3, 2**32], np.array([[3, -100]]), [1.5], ["a"], [True], np.array([1.0])]
)
def test_what_is_no_token_id_is_told(tokenizer, token_ids):
    with pytest.raises(
        InvalidInputError, match="A token id must be an integer of at least 0, received"
    ):
        tokenizer.detokenize(token_ids)
    assert tokenizer.id_to_token(-1) is None


@pytest.mark.parametrize("messages", [None, 3, "hi", {"role": "user", "content": "x"}])
def test_what_is_no_conversation_is_told(tokenizer, messages):
    pytest.importorskip("jinja2")
    with pytest.raises(
        InvalidInputError, match=r"Messages must have the form \[.*received (None|3|'hi'|{)"
    ):
        tokenizer.apply_chat_template(messages)


def test_a_folder_is_not_its_files(folder):
    with pytest.raises(
        InvalidInputError, match=r"`files` must be a dict .*Tokenizer\.from_preset\("
    ):
        Tokenizer(str(folder))


def test_rows_and_arrays_are_decoded(tokenizer):
    rows = tokenizer.tokenize(["fox", "dog"])
    assert tokenizer.detokenize(rows) == ["fox", "dog"]
    assert tokenizer.detokenize(np.array(rows[0])) == "fox"
    assert tokenizer.detokenize(tokenizer(["fox", "a dog"])["token_ids"]) == ["fox", "a dog"]
    assert tokenizer.detokenize([]) == ""


def test_special_tokens_are_known_and_leave_no_text(tokenizer):
    ids = {f"{name}_token": number for number, name in enumerate(("pad", "bos", "eos"))}
    assert tokenizer.special_token_ids == ids
    assert (tokenizer.pad_token_id, tokenizer.stop_token_ids) == (0, (2,))
    assert tokenizer.detokenize([1, *tokenizer.tokenize("fox"), 2]) == "fox"
    assert tokenizer.detokenize([1], skip_special_tokens=False) == "<s>"
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert tokenizer.id_to_token(2) == "</s>"
    assert (tokenizer.token_to_id("no token"), tokenizer.id_to_token(9999)) == (None, None)
    assert tokenizer.vocabulary_size == 320


def test_a_text_with_special_tokens_in_it_has_them(tokenizer):
    assert tokenizer.tokenize("<s>fox</s>") == [1, *tokenizer.tokenize("fox"), 2]


def test_the_file_decides_on_tokens_of_beginning_and_end(tmp_path):
    from tokenizers import processors

    library = train_tokenizer(tmp_path / "tokenizer", add_bos_token=False)
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    library.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    tokenizer = Tokenizer.from_preset(tmp_path / "tokenizer")
    fox = tokenizer.tokenize("fox", add_special_tokens=False)
    assert tokenizer.tokenize("fox") == [1, *fox, 2]
    assert tokenizer("fox", add_special_tokens=False)["token_ids"].tolist() == [fox]


def test_padding_and_cutting_that_the_file_asks_for_are_left_to_the_call(tmp_path):
    library = train_tokenizer(tmp_path / "tokenizer")
    library.enable_padding(length=50)
    library.enable_truncation(max_length=2)
    library.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    tokenizer = Tokenizer.from_preset(tmp_path / "tokenizer")
    assert 2 < len(tokenizer.tokenize("the lazy dog")) < 50


def test_a_conversation_is_written_by_the_checkpoints_template(tokenizer):
    pytest.importorskip("jinja2")
    text = tokenizer.apply_chat_template(MESSAGES)
    assert text == "<s><|user|>A fox?<|assistant|>"
    without = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=False)
    assert without == "<s><|user|>A fox?"
    assert tokenizer.tokenize(text, add_special_tokens=False)[:2] == [1, 3]


def test_a_template_comes_from_a_file_of_its_own_or_is_one_of_several(tmp_path):
    pytest.importorskip("jinja2")
    several = [
        {"name": "default", "template": "D"},
        {"name": "tool_use", "template": "{{ tools }}"},
    ]
    tokenizer = retrained(tmp_path, chat_template=several)
    assert tokenizer.apply_chat_template(MESSAGES) == "D"
    assert tokenizer.apply_chat_template(MESSAGES, template="tool_use", tools="T") == "T"
    with pytest.raises(InvalidInputError, match="did you mean 'tool_use'"):
        tokenizer.apply_chat_template(MESSAGES, template="tool_us")
    (tmp_path / "tokenizer" / "chat_template.json").write_text('{"chat_template": "J"}')
    assert Tokenizer.from_preset(tmp_path / "tokenizer").apply_chat_template(MESSAGES) == "J"
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text("F")
    assert Tokenizer.from_preset(tmp_path / "tokenizer").apply_chat_template(MESSAGES) == "F"


def test_without_a_template_there_is_no_conversation(tmp_path):
    with pytest.raises(InvalidInputError, match="has no chat template"):
        retrained(tmp_path, chat_template=None).apply_chat_template(MESSAGES)
    assert CHAT_TEMPLATE


def test_without_a_template_the_family_has_a_message_format(tmp_path):
    folder = tmp_path / "tokenizer"
    train_tokenizer(folder, chat_template=None)
    (folder / "config.json").write_text('{"model_type": "deepseek_v32"}')
    tokenizer = Tokenizer.from_preset(folder)
    text = "<｜begin▁of▁sentence｜><｜User｜>A fox?"
    assert tokenizer.apply_chat_template(MESSAGES) == f"{text}<｜Assistant｜></think>"
    thinking = tokenizer.apply_chat_template(MESSAGES, thinking=True)
    assert thinking == f"{text}<｜Assistant｜><think>"
    assert tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=False) == text
    with pytest.raises(InvalidInputError, match="Unknown chat template 'tool_use'"):
        tokenizer.apply_chat_template(MESSAGES, template="tool_use")
    (folder / "chat_template.jinja").write_text("F")
    assert Tokenizer.from_preset(folder).apply_chat_template(MESSAGES) == "F"


def test_a_missing_or_torn_file_is_told(tmp_path, folder):
    with pytest.raises(InvalidInputError, match=r"lack 'tokenizer\.json'"):
        Tokenizer.from_preset(tmp_path)
    content = (folder / "tokenizer.json").read_bytes()
    for torn in (content[:-9], b"", b"{}", b'{"model": {"type": "BPE"}}'):
        with pytest.raises(CheckpointError, match=r"'tokenizer\.json' is damaged"):
            Tokenizer({"tokenizer.json": torn})


def test_without_the_library_the_extra_is_named(monkeypatch):
    assert is_installed()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[text\]"):
        Tokenizer({"tokenizer.json": b"{}"})
