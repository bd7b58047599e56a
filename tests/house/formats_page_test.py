"""The table of docs/how_to/export_a_model.md has a row for every export format."""

from keras_deepseek.deploy.formats.format_list import FORMATS


def test_every_format_is_in_the_table(root):
    page = (root / "docs/how_to/export_a_model.md").read_text(encoding="utf-8")
    assert [name for name in FORMATS if f'| `"{name}"` |' not in page] == []
