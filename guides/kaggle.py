"""Runs guides as Kaggle would: from a data set of wheels, beside the packages that are there.

    python guides/kaggle.py OUT guides/01_quickstart.py ...

Run it where Kaggle's versions are installed and this package is not: `tox -e kaggle`. It writes the
data set to OUT/kaggle/wheels, and fails if a package that was there before has changed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from build import KAGGLE_INPUT, KAGGLE_INSTALL, GuideError, read_guide, run_and_print


def pip(*arguments: str) -> str:
    """Runs pip, and returns what it prints."""
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def write_wheels(needed: str, folder: Path, installed: str) -> None:
    """Writes the wheels of this package, and of what it needs and Kaggle lacks, to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    constraints = folder.parent / "installed.txt"
    constraints.write_text(installed, encoding="utf-8")
    words = needed.replace('"', "").replace("keras_deepseek", ".").split()
    options = ("--quiet", "--dry-run", "--report", "-", "--constraint", str(constraints))
    report = json.loads(pip("install", *options, *words))
    missing = [
        package["metadata"]
        for package in report["install"]
        if "dir_info" not in package["download_info"]
    ]
    pins = [f"{metadata['name']}=={metadata['version']}" for metadata in missing]
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), ".", *pins)


def main() -> None:
    """Writes the data set, runs the notebooks, and compares the installed packages."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument("guides", type=Path, nargs="+", help="the guides to run")
    arguments = parser.parse_args()
    old_packages = pip("freeze")
    folder = arguments.out.absolute() / "kaggle/wheels"
    try:
        guides = [read_guide(path) for path in arguments.guides]
        write_wheels(" ".join(guide.header["Install"] for guide in guides), folder, old_packages)
        for guide in guides:
            run_and_print(guide, KAGGLE_INSTALL.replace(KAGGLE_INPUT, str(folder.parent)))
    except GuideError as error:
        sys.exit(str(error))
    after = pip("freeze")
    if changed := set(old_packages.splitlines()) - set(after.splitlines()):
        sys.exit(f"These packages were there, and are not as they were: {', '.join(changed)}")
    added = sorted(set(after.splitlines()) - set(old_packages.splitlines()))
    print(f"Added: {', '.join(added)}")


if __name__ == "__main__":
    main()
