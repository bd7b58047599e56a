from pathlib import Path
from types import SimpleNamespace

import pytest

from keras_deepseek.artifacts.manifest import Verification
from keras_deepseek.deploy import ExportReport


@pytest.mark.parametrize(
    ("verification", "expected"),
    [
        (
            Verification("verified", num_samples=3, largest_difference=1.5e-7),
            "m.onnx: onnx, verified on 3 batches, largest difference 1.5e-07 (by hand, 0.5 s)",
        ),
        (
            Verification("verified", num_samples=2, signatures=("a", "b")),
            "m.onnx: onnx, verified on 2 batches by a, b, largest difference 0 (by hand, 0.5 s)",
        ),
        (
            Verification("unverified", "no GPU"),
            "m.onnx: onnx, unverified: no GPU (by hand, 0.5 s)",
        ),
    ],
)
def test_a_report_says_in_one_line_what_was_found(verification, expected):
    report = ExportReport(Path("m.onnx"), "onnx", "by hand", verification, (), 0.5)
    assert str(report) == expected
    assert report.verified == (verification.state == "verified")


def test_a_notebook_shows_that_line():
    lines = []
    report = ExportReport(Path("m"), "onnx", "by hand", Verification("unverified", "no GPU"), (), 1)
    report._repr_pretty_(SimpleNamespace(text=lines.append), False)
    assert lines == [str(report)]
