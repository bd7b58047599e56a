"""Takes mends of faults out again, one at a time, and shows which tests notice.

    python .ci/mended_faults.py            # all of them; hours
    python .ci/mended_faults.py d6fa289    # one

For each, the package is that of the checkout without the change that one commit made to it. The
tests are those of the modules that the commit changed, and those that it changed itself: first as
the gate runs them, where no framework is installed and on each backend, then every case. A test
counts if it fails without the mend and passes with it. Where nothing but an import fails, since the
mend has brought a function along that a test names, the table says so.

Run `tox` first, whose environments serve here, in a checkout with its history. A line of
`mended_faults.txt` is a commit and what was wrong. Commits that no longer come out alone, since
later ones built on them, are told and don't count. It ends with 1 where nothing notices a mend.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAULTS = Path(__file__).with_suffix(".txt")
BACKENDS = ("torch", "jax", "tensorflow")
TIMEOUT = "240"
"""Seconds. A test that hangs without its mend has noticed."""


@dataclass(frozen=True)
class Run:
    """One way to run tests: the environment's Python, the backend, and which cases."""

    environment: str
    backend: str
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return self.backend if self.environment == "frameworks" else self.environment

    def find_failures(self, checkout: Path, tests: Sequence[str], most: int = 10) -> list[str]:
        """Returns the first tests that fail in a checkout, and the files that can't be imported."""
        python = ROOT / ".tox" / self.environment / "bin" / "python"
        report = ["--quiet", "--no-header", "-p", "no:cacheprovider", "-rfE", f"--maxfail={most}"]
        report.append("--continue-on-collection-errors")
        done = subprocess.run(
            [python, "-m", "pytest", *report, "--timeout", TIMEOUT, *self.options, *tests],
            cwd=checkout,
            env={
                **os.environ,
                "KERAS_BACKEND": self.backend,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(checkout),
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line.split(" - ")[0].split() for line in done.stdout.splitlines()]
        failed = [words[1] for words in lines if words and words[0] in ("FAILED", "ERROR")]
        if not failed and done.returncode not in (0, 4, 5):  # 4 and 5: there is no such test here.
            failed = [f"(pytest ended with {done.returncode})"]
        return sorted(set(failed), key=lambda test: "::" not in test)


GATE = [
    Run("no-framework", "tensorflow", ("--gate",)),
    *(Run("frameworks", backend, ("--gate",)) for backend in BACKENDS),
]
NIGHTLY = [Run("frameworks", backend, ()) for backend in BACKENDS]


def git(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs git in a folder."""
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check)


def take_out(checkout: Path, commit: str) -> bool:
    """Takes the commit's change of the package out of a checkout, and returns whether it could."""
    git(checkout, "reset", "--hard", "--quiet")
    change = git(checkout, "show", "--format=", commit, "--", "keras_deepseek").stdout
    with tempfile.NamedTemporaryFile("w", suffix=".diff") as file:
        file.write(change)
        file.flush()
        done = git(checkout, "apply", "--reverse", "--3way", file.name, check=False)
    return done.returncode == 0 and "<<<<<<<" not in git(checkout, "diff", "HEAD").stdout


def find_tests(checkout: Path, commit: str) -> list[str]:
    """Returns the test files of the modules that a commit changed, and those that it changed."""
    names = git(checkout, "show", "--format=", "--name-only", commit).stdout.split()
    return sorted({test for name in names for test in _tests_of(Path(name))} & _all_tests(checkout))


def _tests_of(path: Path) -> Iterator[str]:
    if path.suffix != ".py":
        return
    parts = path.with_suffix("").parts
    if parts[0] == "keras_deepseek":
        if parts[1] == "backend" and parts[2] in BACKENDS:
            parts = (*parts[:2], *parts[3:])
        yield "/".join(("tests", *parts[1:])) + "_test.py"
    elif parts[0] == "tests":
        yield path.as_posix()


def _all_tests(checkout: Path) -> set[str]:
    return {path.relative_to(checkout).as_posix() for path in checkout.glob("tests/**/*_test.py")}


def find(checkout: Path, commit: str, runs: Sequence[Run]) -> str:
    """Returns the first test that notices that a mend is missing, or nothing."""
    tests, imports = find_tests(checkout, commit), ""
    for run in runs:
        if not take_out(checkout, commit):
            return "(does not come out alone)"
        failed = run.find_failures(checkout, tests)
        git(checkout, "reset", "--hard", "--quiet")
        real = [each for each in failed if each.startswith("tests/")]
        broken = set(run.find_failures(checkout, real, most=len(real))) if real else set()
        for each in failed:
            if each not in broken and ("::" in each or each not in real):
                return f"{run.name}: {each}"
            if each not in broken:
                imports = imports or f"{run.name}: {each} (import)"
    return imports


def check(commits: Sequence[str]) -> None:
    """Ends with a message where a commit or an environment is missing."""
    for run in GATE:
        if not (ROOT / ".tox" / run.environment).is_dir():
            sys.exit(f"There is no environment .tox/{run.environment}: run `tox` first.")
    for commit in commits:
        if git(ROOT, "cat-file", "-e", f"{commit}^{{commit}}", check=False).returncode:
            sys.exit(f"There is no commit {commit!r} in this checkout and its history.")


def main(arguments: Sequence[str]) -> int:
    """Prints a table, a row for each commit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commits", nargs="*", help="those to take out; all by default")
    lines = [line for line in FAULTS.read_text().splitlines() if line.strip()]
    faults = dict(line.split(maxsplit=1) for line in lines)
    commits = parser.parse_args(arguments).commits or list(faults)
    check(commits)
    found = {"gate": 0, "nightly": 0}
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        subprocess.run(["git", "clone", "--quiet", ROOT, checkout], check=True)
        print("| commit | fault | found by | test |\n|---|---|---|---|", flush=True)
        for commit in commits:
            test, tier = find(checkout, commit, GATE), "gate"
            if not test:
                test, tier = find(checkout, commit, NIGHTLY), "nightly"
            tier = tier if ":" in test else "nothing"
            for name in ("gate", "nightly")[tier == "nightly" :] if tier in found else ():
                found[name] += 1
            print(f"| {commit} | {faults.get(commit, '')} | {tier} | {test} |", flush=True)
    print(f"\ngate {found['gate']}, nightly {found['nightly']} of {len(commits)}")
    return int(found["nightly"] < len(commits))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
