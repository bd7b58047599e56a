"""The pictures that need no training are those that docs/draw_pictures.py draws."""

import importlib.util

import pytest

pytest.importorskip("grimp", reason="the environment `no-framework` has it")


def load(root):
    spec = importlib.util.spec_from_file_location("draw_pictures", root / "docs/draw_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["rooms", "way"])
def test_the_picture_is_up_to_date(root, name):
    drawn = (root / f"docs/pictures/{name}.svg").read_text(encoding="utf-8")
    draw = getattr(load(root), f"draw_{name}")
    assert draw() == drawn, f"Run: python docs/draw_pictures.py {name}"


def test_detours_are_left_out(root):
    imports = {("a", "b"), ("b", "c"), ("a", "c")}
    assert load(root).without_detours(imports) == [("a", "b"), ("b", "c")]
