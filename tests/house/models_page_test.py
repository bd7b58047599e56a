"""The Python on `docs/models.md`, read from above: a block has no name that none before it made."""

import ast
import builtins
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def find_unknown_names(blocks):
    known, unknown = set(dir(builtins)), []
    for block in blocks:
        nodes = list(ast.walk(ast.parse(block)))
        for node in nodes:
            if isinstance(node, ast.alias):
                known.add((node.asname or node.name).partition(".")[0])
            elif isinstance(node, ast.ClassDef | ast.FunctionDef):
                known.add(node.name)
            elif isinstance(node, ast.arg):
                known.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                known.add(node.id)
        used = {each.id for each in nodes if isinstance(each, ast.Name)}
        unknown += sorted(used - known)
    return unknown


def test_every_name_is_made_or_imported_before_it_is_used():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 5
    assert find_unknown_names(blocks) == []


def test_a_name_that_is_missing_is_found():
    assert find_unknown_names(["import a.b as c\nx = c(y)", "print(x, z)"]) == ["y", "z"]
