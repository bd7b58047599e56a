"""The page of the operations in ONNX files has the entries that the table has, each with a test."""

import importlib.util
import re

import pytest


@pytest.fixture
def writer(root):
    spec = importlib.util.spec_from_file_location(
        "write_operations", root / "docs/write_operations.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(root, writer):
    written = (root / "docs/reference/onnx_operations.md").read_text(encoding="utf-8")
    if f"for Keras {writer.VERSION}." not in written:
        pytest.skip("the page lists the operations of another Keras")
    assert writer.write_page() == written, "Run: python docs/write_operations.py"


def test_each_operation_has_a_test(writer):
    rows = re.findall(r"^\| .*", writer.write_page(), re.MULTILINE)
    assert [row for row in rows if row.endswith("| none |")] == []
