"""The Python on each page runs, from top to bottom, in a folder of its own; then its test classes.

A page starts with the imports and data that its blocks need. A block that only shows a form has the
comment `<!-- not run: REASON -->` on the line above it.
"""

import ast
import asyncio
import inspect
import re
import socket
import sys
import types
import unittest
from pathlib import Path

import keras
import pytest

from tests.oracles.pages import NAMES, ROOT, read_blocks

ON_TENSORFLOW = {
    "docs/how_to/compare_formats.md",
    "docs/how_to/export_a_model.md",
    "docs/how_to/export_for_tf_serving.md",
    "docs/how_to/export_in_lower_precision.md",
}
"""The pages whose exports other backends pass to a process of TensorFlow."""

OPTIONAL = {"fastapi", "httpx", "onnx", "onnxruntime", "sklearn", "tensorflow"}
"""The packages without which a page is skipped. An environment of the gate has them."""


def list_pages():
    pages = []
    for name in NAMES:
        blocks = [block for block in read_blocks(ROOT / name) if block.language == "python"]
        if any(block.runs for block in blocks):
            marks = [pytest.mark.tensorflow_alone] if name in ON_TENSORFLOW else []
            pages.append(pytest.param(name, id=name, marks=marks))
    return pages


def replace_ports(code: str, ports: dict[str, int]) -> str:
    """Replaces the ports of servers by free ones, because tests run side by side."""

    def replace(match: re.Match[str]) -> str:
        if match[0] not in ports:
            with socket.create_server(("127.0.0.1", 0)) as free:
                ports[match[0]] = free.getsockname()[1]
        return str(ports[match[0]])

    return re.sub(r"\b(8500|8501|8502|6006)\b", replace, code)


def run_page(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)  # Classes of the page name it as their module.
    ports: dict[str, int] = {}
    for block in read_blocks(ROOT / name):
        if block.language != "python" or not block.runs:
            continue
        code = "\n" * block.line + replace_ports(block.text, ports)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        result = eval(compile(code, ROOT / name, "exec", flags=flags), vars(page))
        if inspect.isawaitable(result):
            asyncio.run(result)
    # Classes that a page imports have no tests themselves.
    outcome = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromModule(page).run(outcome)
    failures = outcome.failures + outcome.errors
    assert not failures


@pytest.mark.parametrize("name", list_pages())
def test_the_code_of_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = keras.config.dtype_policy()
    try:
        run_page(name, monkeypatch)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"The page needs {error.name}.")
    finally:
        keras.config.set_dtype_policy(policy)


def test_a_broken_page_fails_with_its_line(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n```python\n\nprint(x + y)\n```\n")
    with pytest.raises(NameError) as caught:
        run_page(str(page), monkeypatch)
    assert caught.traceback[-1].path == Path(page)
    assert caught.traceback[-1].lineno == 8


def test_a_test_class_of_a_page_that_fails_fails(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nimport unittest\n\nclass PageTest(unittest.TestCase):\n"
        "    def test_sum(self):\n        self.assertEqual(1 + 1, 3)\n```\n"
    )
    with pytest.raises(AssertionError, match="2 != 3"):
        run_page(str(page), monkeypatch)
