"""The page of the command line has the flags that the parsers have."""

import importlib.util


def test_the_page_is_up_to_date(root):
    spec = importlib.util.spec_from_file_location("write_commands", root / "docs/write_commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (root / "docs/reference/command_line.md").read_text(encoding="utf-8")
    assert module.write_page() == written, "Run: python docs/write_commands.py"
