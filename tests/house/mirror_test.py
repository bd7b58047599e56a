"""Every folder of the package has tests, and every folder of tests has one of the package."""

from pathlib import Path

SHARING = ("jax", "tensorflow", "torch", "protocols")
"""Folders of `backend` that share their tests, which lie in `tests/backend/`."""
WITHOUT_CODE = ("docs", "house", "oracles")


def find_tests(root: Path) -> set[tuple[str, ...]]:
    """Returns the paths of the folders of tests, and of those above them.

    A test file counts as a folder of its name: `tests/training/step_test.py` tests all of `step/`.
    """
    paths = (path.relative_to(root / "tests") for path in (root / "tests").rglob("*_test.py"))
    tests = {(*path.parts[:-1], path.stem.removesuffix("_test")) for path in paths}
    return {test[:length] for test in tests for length in range(1, len(test) + 1)}


def find_code(root: Path) -> set[tuple[str, ...]]:
    """Returns the paths of the folders of the package that hold a module."""
    package = root / "keras_deepseek"
    modules = (path for path in package.rglob("*.py") if not path.stem.startswith("__"))
    folders = {module.parent.relative_to(package).parts for module in modules}
    return {
        (folder[0], *folder[2:])
        if folder[0] == "backend" and folder[1:2] and folder[1] in SHARING
        else folder
        for folder in folders - {()}
    }


def test_every_folder_has_tests(root):
    assert sorted(find_code(root) - find_tests(root)) == []


def test_every_folder_of_tests_has_code(root):
    code = {folder[:length] for folder in find_code(root) for length in range(len(folder) + 1)}
    tests = (path.relative_to(root / "tests") for path in (root / "tests").rglob("*_test.py"))
    folders = {test.parent.parts for test in tests}
    unknown = {folder for folder in folders - code if folder[0] not in WITHOUT_CODE}
    assert sorted(unknown) == []


def test_every_file_in_tests_is_collected(root):
    files = {path.name for path in (root / "tests").rglob("*.py")}
    allowed = {"__init__.py", "conftest.py"}
    helpers = {path.name for path in (root / "tests/oracles").rglob("*.py")}
    assert {name for name in files - allowed - helpers if not name.endswith("_test.py")} == set()
