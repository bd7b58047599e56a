"""Every module has its test file, and every test file its module."""

from pathlib import Path

BACKENDS = ("jax", "tensorflow", "torch")
WITHOUT_A_MODULE = ("house", "oracles")


def expected_tests(root: Path) -> set[str]:
    """Returns the test file of each module; the three backends share theirs with each other.

    They share it with the room of the same name, too: `processes_test.py` is in `processes/`.
    """
    expected = set()
    of_rooms = {path.name: path for path in (root / "tests/backend").rglob("*/*_test.py")}
    for path in (root / "keras_deepseek").rglob("*.py"):
        parts = list(path.relative_to(root / "keras_deepseek").with_suffix("").parts)
        if parts[-1] == "__init__":
            continue
        if parts[0] == "backend" and parts[1] in BACKENDS:
            name = f"{parts[-1]}_test.py"
            shared = of_rooms.get(name, root / "tests/backend" / name)
            expected.add(shared.relative_to(root / "tests").as_posix())
            continue
        expected.add("/".join(parts) + "_test.py")
    return expected


def present_tests(root: Path) -> set[str]:
    """Returns the test files that stand for a module."""
    names = (path.relative_to(root / "tests") for path in (root / "tests").rglob("*_test.py"))
    return {name.as_posix() for name in names if name.parts[0] not in WITHOUT_A_MODULE}


def test_every_module_has_its_test_file(root):
    assert sorted(expected_tests(root) - present_tests(root)) == []


def test_every_test_file_has_its_module(root):
    assert sorted(present_tests(root) - expected_tests(root)) == []


def test_every_file_in_tests_is_collected(root):
    files = {path.name for path in (root / "tests").rglob("*.py")}
    allowed = {"conftest.py"}
    helpers = {path.name for path in (root / "tests/oracles").rglob("*.py")}
    assert {name for name in files - allowed - helpers if not name.endswith("_test.py")} == set()
