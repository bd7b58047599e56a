import dataclasses

import numpy as np
import pytest

from keras_deepseek.artifacts.run_record import RunRecord
from keras_deepseek.deploy import Latency, LatencyTable, compare_latencies
from keras_deepseek.deploy.formats import registry
from keras_deepseek.errors import InvalidInputError


def test_formats_are_timed_beside_the_model(digits, tensorflow_installed):
    rows = np.random.default_rng(0).normal(size=(20, 8, 8, 1)).astype("float32")
    table = compare_latencies(
        digits, ["onnx", "savedmodel"], batch_sizes=(1, 5), seconds=0.02, calibration=rows
    )
    names = {row.format for row in table.rows}
    assert names == {"keras", "onnx", "onnx int8", "savedmodel"}
    assert {row.batch_size for row in table.rows} == {1, 5}
    assert all(row.milliseconds > 0 for row in table.rows)
    assert table.left_out == {}


def test_failing_formats_are_left_out_with_their_reason(dense, weights_format, monkeypatch):
    class Failing(weights_format):
        name = "failing"

        def load(self, folder):
            def infer(sample):
                raise RuntimeError("no such kernel")

            return infer

    formats = {"weights": weights_format(), "failing": Failing()}
    formats["differing"] = weights_format(spoil=0.1)
    monkeypatch.setattr(registry, "_registered", formats)
    table = compare_latencies(dense, list(formats), batch_sizes=[2], seconds=0.01, verbose=False)
    assert [row.format for row in table.rows] == ["keras"]
    assert "has no `load`" in table.left_out["weights"]
    assert "no such kernel" in table.left_out["failing"]
    assert "differs by" in table.left_out["differing"]


def test_a_table_has_a_line_for_each_format():
    rows = (Latency("keras", 1, 2.0, 1.5), Latency("keras", 8, 4.0, 3.0), Latency("onnx", 1, 1, 1))
    text = str(LatencyTable(rows, {"tensorrt": "no GPU"}))
    first, keras_line, onnx_line, last = text.splitlines()
    assert first.split() == ["ms", "(CPU", "ms)", "batch", "of", "1", "batch", "of", "8"]
    assert keras_line.split() == ["keras", "2.00", "(1.50)", "4.00", "(3.00)"]
    assert onnx_line.split() == ["onnx", "1.00", "(1.00)"]
    assert last == "tensorrt: no GPU"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"formats": "onnx"}, "`formats` must be a list; received 'onnx'"),
        ({"batch_sizes": 3}, "`batch_sizes` must be a list; received 3"),
        ({"batch_sizes": []}, "`batch_sizes` is empty"),
        ({"batch_sizes": [1.5]}, "`batch_sizes` must be a positive integer, received 1.5"),
        ({"length": -1}, "`length` must be a positive integer, received -1"),
        ({"seconds": 0.0}, "`seconds` must be a finite number above 0, received 0.0"),
    ],
)
def test_wrong_arguments_are_named(dense, arguments, match):
    with pytest.raises(InvalidInputError, match=match):
        compare_latencies(dense, **arguments)


def test_an_unknown_format_is_refused(dense):
    with pytest.raises(InvalidInputError, match="did you mean 'onnx'"):
        compare_latencies(dense, ["onxx"])


def test_a_run_record_keeps_the_table(dense, tmp_path):
    table = compare_latencies(
        dense, formats=[], batch_sizes=[2], seconds=0.01, run_record=tmp_path / "run.sqlite"
    )
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        (row,) = record.document("latencies")["rows"]
    assert row == dataclasses.asdict(table.rows[0])
