"""Griffe extension: turns docstrings in Keras's form into sections that Griffe knows.

`Call arguments:` becomes a table like that of `Args:`, an example a block of code with a button to
copy it, in front of the arguments. `Returns:`, `Example:` and `Reference:` are prose below a head
like that of a table.
"""

import re
import textwrap
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
PROSE = re.compile(r"^(Example|Reference|Returns|Yields):\n((?:(?: {4}.*)?\n)*)", re.MULTILINE)
LATE_EXAMPLE = re.compile(
    r"(^Args:\n.*?)(^Example:\n.*?)(?=^[A-Z]\w+(?: \w+)?:\n|\Z)", re.MULTILINE | re.DOTALL
)
HEAD = '<span class="doc-section-title">{}:</span>\n\n{}\n'


class KerasDocstrings(griffe.Extension):
    """Rewrites each docstring that Griffe has read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = rewrite(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Inherits docstrings of methods, and lets functions hide modules of their name.

        Both as in Python: `inspect.getdoc` finds a method's docstring in a base class.
        """
        inherit_docstrings(pkg)
        for room in pkg.modules.values():
            for name, module in room.modules.items():
                if name in room.imports and name in module.members:
                    self.on_object(obj=module.members[name])  # Griffe will not find it any more.
                    room.members[name] = griffe.Alias(name, module.members[name], parent=room)


def inherit_docstrings(module: griffe.Module) -> None:
    """Gives each public method without a docstring that of the method which it overrides."""
    for child in module.members.values():
        if child.is_alias:
            continue
        if child.is_module:
            inherit_docstrings(child)
        elif child.is_class and any(base.name != "object" for base in child.resolved_bases):
            for name, method in child.functions.items():
                inherited = (base.members[name] for base in child.mro() if name in base.members)
                if method.docstring is None and name[0] != "_":
                    method.docstring = next(
                        (other.docstring for other in inherited if other.docstring), None
                    )


def rewrite(text: str) -> str:
    """Returns a docstring in Keras's form as one in Griffe's."""
    text = LATE_EXAMPLE.sub(r"\2\n\1", text + "\n")
    text = EXAMPLE.sub(lambda example: f"```pycon\n{example[0]}\n```", text)
    text = PROSE.sub(lambda part: HEAD.format(part[1], _unindent(part[2])), text)
    text = re.sub(r"^Args:$", "Args: Arguments:", text, flags=re.M)
    return re.sub(r"^Call arguments:$", "Other Parameters: Call arguments:", text, flags=re.M)


def _unindent(text: str) -> str:
    """Returns a section without indents, which Griffe would take for a section inside of it."""
    return re.sub(r"\n +(?=\w|`)", "\n", textwrap.dedent(text))
