"""Every module has a test file, its own or its room's, and every test file has a module."""

from pathlib import Path

SHARING = ("jax", "tensorflow", "torch", "protocols")
"""Folders of `backend` whose modules of one name share one test file."""
WITHOUT_A_MODULE = ("docs", "house", "oracles")


def modules(root: Path) -> list[tuple[str, ...]]:
    """Returns the modules as paths in the package; those of one name under `SHARING` are one."""
    paths = []
    for path in (root / "keras_deepseek").rglob("*.py"):
        parts = path.relative_to(root / "keras_deepseek").with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__"):
            is_of_backend = parts[0] == "backend" and parts[1] in SHARING
            paths.append((parts[0], *parts[2:]) if is_of_backend else parts)
    return paths


def find_tests(root: Path) -> set[tuple[str, ...]]:
    """Returns what has a test file: `("training", "step")` by `tests/training/step_test.py`."""
    names = (path.relative_to(root / "tests") for path in (root / "tests").rglob("*_test.py"))
    return {
        (*name.parts[:-1], name.stem.removesuffix("_test"))
        for name in names
        if name.parts[0] not in WITHOUT_A_MODULE
    }


def has_test(module: tuple[str, ...], tests: set[tuple[str, ...]]) -> bool:
    """Returns True if a module, or a room inside a room that holds it, has a test file.

    The three backends share theirs with the room of the same name: `processes/processes_test.py`.
    """
    lengths = range(min(2, len(module)), len(module) + 1)
    has_own_test = any(module[:length] in tests for length in lengths)
    return has_own_test or (
        module[0] == "backend" and any(name[-1] == module[-1] for name in tests)
    )


def test_every_module_has_a_test_file(root):
    tests = find_tests(root)
    assert [module for module in modules(root) if not has_test(module, tests)] == []


def test_every_test_file_has_a_module_or_a_room(root):
    tested_paths = {
        module[:length] for module in modules(root) for length in range(1, len(module) + 1)
    }
    shared = {module[-1] for module in modules(root) if module[0] == "backend"}
    unknown = [test for test in find_tests(root) - tested_paths if test[-1] not in shared]
    assert sorted(unknown) == []


def test_every_file_in_tests_is_collected(root):
    files = {path.name for path in (root / "tests").rglob("*.py")}
    allowed = {"__init__.py", "conftest.py"}
    helpers = {path.name for path in (root / "tests/oracles").rglob("*.py")}
    assert {name for name in files - allowed - helpers if not name.endswith("_test.py")} == set()
