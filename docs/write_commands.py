# ruff: noqa: SLF001 - argparse has no public way to list the arguments of a parser.
"""Writes the page of all flags: `python docs/write_commands.py`.

A test in `tests/house/` fails if `docs/reference/command_line.md` is not up to date.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from keras_deepseek.cli import PROGRAM, _make_parser

PAGE = Path(__file__).parent / "reference/command_line.md"
INTRODUCTION = """# Command line

`--help` of each command shows the same. `python docs/write_commands.py` writes this page.
[Flags of `serve`](../how_to/configure_a_server.md) may also come from the environment or a file.
"""


def write_page() -> str:
    """Returns the text of the page."""
    return INTRODUCTION + "".join(write_command(_make_parser(), PROGRAM, ""))


def write_command(parser: argparse.ArgumentParser, name: str, summary: str) -> Iterator[str]:
    """Yields the section of a command, and those of the commands below it."""
    children = [
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    ]
    if summary and not children:
        yield f"\n## {name}\n\n{summary[0].upper()}{summary[1:]}.\n"
        groups = [(group.title, list(write_rows(parser, group))) for group in parser._action_groups]
        groups = [(title, rows) for title, rows in groups if rows]
        for title, rows in groups:
            heading = f"\n**{(title or '').capitalize()}**\n" if len(groups) > 1 else ""
            yield f"{heading}\n| argument | meaning |\n|---|---|\n{''.join(rows)}"
    for child in children:
        summaries = {choice.dest: choice.help or "" for choice in child._choices_actions}
        for below, of_below in child.choices.items():
            yield from write_command(of_below, f"{name} {below}", summaries[below])


def write_rows(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> Iterator[str]:
    """Yields a row of the table for each argument of a group."""
    formatter = parser._get_formatter()
    for action in group._group_actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        values = formatter._format_args(action, (action.dest or "").upper())
        if action.choices is not None:
            values = " or ".join(map(str, action.choices))
        flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
        if action.nargs == 0:
            values = ""
        argument = f"{flags} `{values}`" if flags and values else flags or f"`{values}`"
        meaning = formatter._expand_help(action)
        yield f"| {escape(argument)} | {escape(meaning)} |\n"


def escape(text: str) -> str:
    """Lets a cell of a table hold any text."""
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(write_page(), encoding="utf-8")
