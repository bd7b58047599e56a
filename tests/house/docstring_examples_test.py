"""Every example in a docstring runs, and what a user meets has a docstring."""

import doctest
import importlib
import inspect
from typing import Any

ROOMS_WITH_EXAMPLES = ("callbacks", "deploy", "graph", "inference", "layers", "models", "training")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def is_ours(value: Any) -> bool:
    return (getattr(value, "__module__", None) or "").startswith("keras_deepseek")


def test_the_examples_of_a_module_print_what_they_say(module_name, tmp_path, monkeypatch):
    module = importlib.import_module(module_name)
    monkeypatch.chdir(tmp_path)
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, module_name):
        runner.run(test, out=printed.append)
    assert runner.failures == 0, "".join(printed)


def test_a_public_name_has_a_docstring(public_name, public_object):
    # Not `inspect.getdoc`: a docstring that is inherited says nothing of this class.
    assert public_object.__doc__, public_name


def test_a_public_method_that_is_ours_alone_has_a_docstring(public_name, public_class):
    foreign = {name for base in public_class.__mro__ if not is_ours(base) for name in vars(base)}
    undocumented = [
        name
        for base in public_class.__mro__
        if is_ours(base)
        for name, member in vars(base).items()
        if not name.startswith("_") and name not in foreign
        if inspect.isroutine(member) or isinstance(member, property)
        if not inspect.getdoc(getattr(public_class, name))
    ]
    assert undocumented == []


def test_a_public_class_shows_an_example(public_name, public_class):
    is_protocol = getattr(public_class, "_is_protocol", False)
    # An error or a protocol is not made by a user.
    owes_one = not issubclass(public_class, Exception) and not is_protocol
    if public_name.split(".")[1] in ROOMS_WITH_EXAMPLES and owes_one:
        documentation = inspect.getdoc(public_class) or ""
        assert "Example:\n\n>>> " in documentation, f"{public_name} has no `Example:` that runs."
