"""Names say what they hold: few variables and arguments bear a word that fits anything."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

EMPTY = re.compile(
    "_*(each|found|given|places?|known|before|own|one|kept|left|others|wanted|rest|held|made|taken|"
    "seen|said|told|asked|shown|lent)_*"
)
MOST_EMPTY_PERCENT = {"keras_deepseek": 0.5, "tests": 0.5}
"""The largest share of such names among all that a folder binds."""


def bound_names(folder: Path) -> Iterator[tuple[Path, int, str]]:
    """Yields the variables and arguments that the modules of a folder bind, with file and line."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg):
                yield path, node.lineno, node.arg
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield path, node.lineno, node.id


def check_names(folder: Path, most_percent: float) -> None:
    """Fails with a list of the empty names, if a folder has more of them than it may."""
    names = sorted(bound_names(folder))
    empty = [
        f"{path.relative_to(folder.parent)}:{line}: {name}"
        for path, line, name in names
        if EMPTY.fullmatch(name)
    ]
    percent = 100 * len(empty) / len(names)
    assert percent <= most_percent, (
        f"{len(empty)} of {len(names)} names in {folder.name} ({percent:.2f} %, at most "
        f"{most_percent} %) don't say what they hold. Call these by the noun of the thing:\n"
        + "\n".join(empty)
    )


@pytest.mark.parametrize("folder", MOST_EMPTY_PERCENT)
def test_names_say_what_they_hold(root, folder):
    check_names(root / folder, MOST_EMPTY_PERCENT[folder])


def test_an_empty_name_is_listed_with_its_line(tmp_path):
    (tmp_path / "module.py").write_text("layer = 1\n\n\ndef find(_given):\n    pass\n")
    with pytest.raises(AssertionError, match=r"1 of 2 names(.|\n)*/module\.py:4: _given"):
        check_names(tmp_path, 49.9)
