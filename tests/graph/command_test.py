import argparse
import json
import logging
import os

import keras
import numpy as np
import pytest
from keras import layers

from keras_deepseek import graph
from keras_deepseek.errors import KerasDeepSeekError
from keras_deepseek.graph import command


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([os.fspath(argument) for argument in arguments]))


@pytest.fixture
def folder(tmp_path):
    tokens = keras.Input((None,), dtype="int32")
    mask = keras.Input((None,), dtype="bool")
    x = layers.Embedding(20, 8)(tokens)
    x = x + layers.MultiHeadAttention(2, 4)(x, x, attention_mask=mask[:, None])
    keras.Model([tokens, mask], layers.Dense(3)(x[:, 0])).save(tmp_path / "model.keras")
    keras.Sequential([keras.Input((4,)), layers.Dense(3)]).save(tmp_path / "plain.keras")
    return tmp_path


def test_a_file_becomes_an_optimized_one(folder, capsys, caplog):
    out, report = folder / "out.keras", folder / "report.json"
    with caplog.at_level(logging.INFO):
        run(folder / "model.keras", "-o", out, "--report", report, "--no-measure")
    printed = capsys.readouterr().out
    assert "rewritten by" in caplog.text
    assert "unread_rows" in printed
    assert "unread_rows" in json.loads(report.read_text())["passes"]
    model, optimized = map(keras.saving.load_model, (folder / "model.keras", out))
    assert isinstance(optimized, graph.OptimizedModel)
    inputs = [np.ones((3, 7), "int32"), np.ones((3, 7), bool)]
    np.testing.assert_allclose(
        optimized.predict(inputs, verbose=0), model.predict(inputs, verbose=0), atol=1e-5
    )


def test_the_original_is_written_where_nothing_pays(folder, capsys):
    run(folder / "plain.keras", "-o", folder / "out.keras", "--no-measure", "--passes", "attention")
    assert "nothing that pays was found" in capsys.readouterr().out
    assert isinstance(keras.saving.load_model(folder / "out.keras"), keras.Sequential)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out.h5"], r"must end in \.keras"),
        (["-o", "out.keras", "--batch-size", "0"], "--batch-size"),
        (["-o", "out.keras", "--passes", "rows"], "Unknown --passes 'rows'[^-]*$"),
        (["-o", "out.keras", "--passes", ""], "Unknown --passes ''"),
        (["-o", "file/out.keras"], "Nothing can be written"),
        (["-o", "out.keras", "--report", "file/report.json"], "Nothing can be written"),
        (["-o", "plain.keras"], "must be different files"),
    ],
)
def test_wrong_arguments_are_refused(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    (folder / "file").touch()
    files = sorted(folder.iterdir())
    with pytest.raises(KerasDeepSeekError, match=message):
        run("plain.keras", *arguments)
    assert sorted(folder.iterdir()) == files
