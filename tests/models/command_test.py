import argparse
import io
import os
import sys

import keras
import pytest

from keras_deepseek import cli
from keras_deepseek.models import (
    CausalLM,
    DeepSeekV4CausalLM,
    DeepSeekV32CausalLM,
    Tokenizer,
    command,
)
from keras_deepseek.models.generation.sampler import GREEDY, Sampler
from tests.oracles.small_language_model import WordTokenizer, make_small_model
from tests.oracles.trained_tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def model():
    return make_small_model()


@pytest.fixture
def generate(model, monkeypatch):
    """Runs the command with a small model in place of the one in the folder."""
    model.tokenizer = WordTokenizer(end_token_id=60)
    loaded = []

    def load(folder, **kwargs):
        loaded.append((folder, kwargs))
        return model

    monkeypatch.setattr(CausalLM, "from_preset", load)

    def run(*arguments):
        return cli.main(["generate", "folder", *arguments]), loaded

    yield run
    model.tokenizer = None


def read(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["folder", "--prompt", "hi", *arguments])


def test_text_goes_to_the_output_and_the_pace_beside_it(generate, model, capsys):
    code, loaded = generate("--prompt", "hi", "--max-new-tokens", "6", "--dtype", "float32")
    assert code == 0
    assert loaded == [("folder", {"dtype": "float32"})]
    output = capsys.readouterr()
    assert output.out == model.generate("hi", max_new_tokens=6, strip_prompt=True) + "\n"
    assert output.err.startswith("6 tokens, the first after ")


def test_a_reader_that_has_left_ends_it_in_silence(generate, capsys, monkeypatch):
    """As `head -1` leaves: 141 is what a shell calls the end by SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as ended:
            generate("--prompt", "hi", "--max-new-tokens", "6")
        assert ended.value.code == 141
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_a_stop_text_ends_it(generate, model, capsys):
    whole = model.generate("hi", max_new_tokens=6, strip_prompt=True)
    stop = whole[3:5]
    assert generate("--prompt", "hi", "--max-new-tokens", "6", "--stop", stop)[0] == 0
    assert capsys.readouterr().out == whole[: whole.index(stop)] + "\n"


def test_a_prompt_may_come_from_the_standard_input(generate, model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi"))
    assert generate("--prompt", "-", "--max-new-tokens", "4")[0] == 0
    expected = model.generate("hi", max_new_tokens=4, strip_prompt=True)
    assert capsys.readouterr().out == expected + "\n"


def test_a_chat_is_written_by_the_template(generate, model, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "chat_template.jinja").write_text("{{ messages }}")

    class Chat(WordTokenizer):
        def apply_chat_template(self, messages):
            return "".join(f"<{message['role']}>{message['content']}" for message in messages)

        def tokenize(self, text, *, add_special_tokens=True):
            return super().tokenize(text) + [1] * add_special_tokens

    model.tokenizer = Chat(end_token_id=60)
    assert generate("--prompt", "hi", "--chat", "--max-new-tokens", "4")[0] == 0
    tokens = WordTokenizer().tokenize("<user>hi")
    generated = model.generate(tokens, max_new_tokens=4, strip_prompt=True)
    assert capsys.readouterr().out == WordTokenizer().detokenize(generated) + "\n"


@pytest.mark.parametrize(
    "task", [DeepSeekV32CausalLM, pytest.param(DeepSeekV4CausalLM, marks=pytest.mark.nightly)]
)
def test_a_family_without_a_template_chats(task, tmp_path, capsys):
    pytest.importorskip("tokenizers")
    train_tokenizer(tmp_path / "tokenizer", chat_template=None)
    config = task.config_class.from_preset("tiny", vocabulary_size=320)
    model = task(config)
    model.tokenizer = Tokenizer.from_preset(tmp_path / "tokenizer")
    model.save_to_preset(tmp_path / "model")
    code = cli.main(
        ["generate", str(tmp_path / "model"), "--prompt=A fox?", "--chat", "--max-new-tokens=3"]
    )
    assert code == 0
    text = "<｜begin▁of▁sentence｜><｜User｜>A fox?<｜Assistant｜></think>"
    tokens = model.tokenizer.tokenize(text, add_special_tokens=False)
    generated = model.generate(tokens, max_new_tokens=3, strip_prompt=True)
    assert capsys.readouterr().out == model.tokenizer.detokenize(generated) + "\n"
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    messages = [{"role": "user", "content": "A fox?"}]
    assert again.tokenizer.apply_chat_template(messages) == text


def test_what_is_wrong_is_one_line(generate, model, capsys):
    assert generate("--prompt", "")[0] == 2
    assert "The prompt '' must have at least one token" in capsys.readouterr().err
    assert generate("--prompt", "hi", "--top-p", "3")[0] == 2
    errors = capsys.readouterr().err
    assert errors == "keras-deepseek generate: error: `top_p` must be at most 1, received 3.0.\n"
    model.tokenizer = None
    assert generate("--prompt", "hi")[0] == 2
    assert "has no `tokenizer.json`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-new-tokens", "0"], "`max_new_tokens` must be a positive integer, received 0"),
        (["--seed", "-4"], "`seed` must be an integer of at least 0, received -4"),
        (["--chat"], "The checkpoint has no chat template"),
    ],
)
def test_what_is_wrong_is_told_before_the_model_is_loaded(
    generate, capsys, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    code, loaded = generate("--prompt", "hi", *arguments)
    assert (code, loaded) == (2, [])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sampler"),
    [
        ([], GREEDY),
        (["--temperature", "0.7"], Sampler(0.7)),
        (["--top-k", "3", "--min-p", "0.1"], Sampler(top_k=3, min_p=0.1)),
        (["--seed", "1"], Sampler()),
        (
            ["--temperature", "0", "--seed", "1", "--repetition-penalty", "1.5"],
            Sampler(0.0, repetition_penalty=1.5),
        ),
    ],
)
def test_options_of_sampling_make_a_sampler(arguments, sampler):
    assert command._make_sampler(read(*arguments)) == sampler
