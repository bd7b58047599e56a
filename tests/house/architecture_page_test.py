"""The picture of the rooms in docs/explanation/architecture.md is that of the code."""

import importlib.util

import pytest

pytest.importorskip("grimp", reason="the environment `no-framework` has it")


def load(root):
    spec = importlib.util.spec_from_file_location("draw_pictures", root / "docs/draw_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_the_rooms_is_up_to_date(root):
    drawn = (root / "docs/pictures/rooms.svg").read_text(encoding="utf-8")
    assert load(root).draw_rooms() == drawn, "Run: python docs/draw_pictures.py rooms"


def test_detours_are_left_out(root):
    imports = {("a", "b"), ("b", "c"), ("a", "c")}
    assert load(root).without_detours(imports) == [("a", "b"), ("b", "c")]
