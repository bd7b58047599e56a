"""Builds notebooks, pages of the site and Kaggle's folders from the guides.

    python guides/build.py OUT                          # all guides
    python guides/build.py OUT guides/02_own_layer.py   # one guide
    python guides/build.py OUT --run                    # runs them too, and the pages get pictures

A guide is a script in Keras's form: a string that stands alone is a Markdown cell, the rest is
code. A guide that breaks a rule, or a cell that fails, ends the build with its file and line.
"""

import argparse
import ast
import base64
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HEADER = {
    "Title": ".+",
    "Author": ".+",
    "Date created": r"\d{4}/\d\d/\d\d",
    "Last modified": r"\d{4}/\d\d/\d\d",
    "Description": r".+\.",
    "Time": r"\d+ (second|minute)s? on two cores(, .+)?",
    "Install": r'("keras_deepseek\[[a-z,-]+\]"|keras_deepseek)( [\w.-]+)*',
}
OPTIONAL = {"Accelerator": "NvidiaTeslaT4|TpuV5E8"}  # Kaggle's machine, where it pays.
AT_THE_END = {"an assertion": r"^assert ", "a picture": r"\.savefig\("}
MOST_LINES = {"01_quickstart": 49}
MOST_LINES_OF_OTHERS = 119
COLAB, KAGGLE = "https://colab.research.google.com", "https://kaggle.com"
KAGGLE_INPUT = "/kaggle/input"
KAGGLE_INSTALL = f"""\
# Installs from the data set what Kaggle lacks. It changes no package that Kaggle has.
from pathlib import Path

found = [*Path("{KAGGLE_INPUT}").rglob("keras_deepseek-*.whl")]
assert found, "Add the data set of wheels to this notebook: Add Input."
wheels = found[0].parent
names = " ".join(sorted(path.name.split("-")[0] for path in wheels.glob("*.whl")))
%pip install --quiet --no-index --no-deps --find-links {{wheels}} {{names}}"""


class GuideError(Exception):
    """A fault of a guide, with its file and line."""

    def __init__(self, path: Path, line: int, text: str):
        super().__init__(f"{os.path.relpath(path)}:{line}: {text}")


class Cell(NamedTuple):
    """A cell of a guide, with the number of its first line."""

    line: int
    source: str
    is_code: bool = True


class Guide(NamedTuple):
    """A guide that keeps the rules."""

    path: Path
    header: dict[str, str]
    cells: list[Cell]


class Ran(NamedTuple):
    """What a notebook has shown."""

    printed: str
    pictures: list[bytes]


def read_guide(path: Path) -> Guide:
    """Reads a guide and checks it. Raises `GuideError` for the first rule that it breaks."""
    try:
        text = path.read_text(encoding="utf-8")
        body = ast.parse(text).body
    except UnicodeDecodeError as error:
        raise GuideError(path, error.object.count(b"\n", 0, error.start) + 1, str(error)) from error
    except SyntaxError as error:
        raise GuideError(path, error.lineno or 1, error.msg) from error
    lines, cells, end = text.split("\n"), [], 0

    def add_code(upto: int) -> None:
        numbers = [number for number in range(end, upto) if lines[number].strip()]
        if numbers:
            source = "\n".join(lines[numbers[0] : numbers[-1] + 1])
            cells.append(Cell(numbers[0] + 1, source))

    for node in body:
        match node:
            case ast.Expr(value=ast.Constant(value=str(markdown))):
                add_code(node.lineno - 1)
                cells.append(Cell(node.lineno, markdown.strip(), is_code=False))
                end = node.end_lineno
    add_code(len(lines))
    if not cells or cells[0].is_code:
        raise GuideError(path, 1, f"expected a header with {', '.join(HEADER)}")
    guide = Guide(path, read_header(path, cells[0].source), cells[1:])
    check_code(guide)
    return guide


def read_header(path: Path, text: str) -> dict[str, str]:
    """Returns the fields of a header."""
    header, fields = {}, HEADER | OPTIONAL
    for number, line in enumerate(text.splitlines(), 2):
        name, _, value = line.partition(": ")
        if name not in fields:
            raise GuideError(path, number, f"got {line!r}, expected one of {', '.join(fields)}")
        if not re.fullmatch(fields[name], value):
            raise GuideError(path, number, f"got {line!r}, expected a match for {fields[name]!r}")
        header[name] = value
    if missing := [name for name in HEADER if name not in header]:
        raise GuideError(path, 1, f"the header has no {', '.join(missing)}")
    return header


def check_code(guide: Guide) -> None:
    """Checks the number of lines of code, and that the guide ends with assertion and picture."""
    code = [cell for cell in guide.cells if cell.is_code]
    numbers = [
        number
        for cell in code
        for number, text in enumerate(cell.source.splitlines(), cell.line)
        if not re.match(r"\s*(#|$)", text)
    ]
    most = MOST_LINES.get(guide.path.stem, MOST_LINES_OF_OTHERS)
    if len(numbers) > most:
        text = f"got {len(numbers)} lines of code, expected {most} at most"
        raise GuideError(guide.path, numbers[most], text)
    last = code[-1] if code else Cell(1, "")
    for thing, pattern in AT_THE_END.items():
        if not re.search(pattern, last.source, re.MULTILINE):
            text = f"expected {thing} in the last code cell, a match for {pattern!r}"
            raise GuideError(guide.path, last.line, text)


def write_opening(guide: Guide, links: str, install: str) -> str:
    """Returns what a reader sees in place of the header."""
    header = guide.header
    location = "" if "git+" in install else ", in a checkout of keras_deepseek"
    parts = [
        f"# {header['Title']}",
        links,
        f"{header['Description']} Time: {header['Time']}.",
        f"Install what it needs{location}, beside TensorFlow, JAX or PyTorch:",
        f"```bash\n{install}\n```",
        "Set `KERAS_BACKEND` to `tensorflow`, `jax` or `torch` before Keras is imported.",
        f"*{header['Author']}, {header['Last modified']}*",
    ]
    return "\n\n".join(part for part in parts if part)


def write_notebook(guide: Guide, badges: str, install: str, install_cell: str = "") -> Any:
    """Returns the notebook. A cell's id comes from the guide's name and the cell's place."""
    cells = [new_markdown_cell(write_opening(guide, badges, install))]
    if install_cell:
        cells.append(new_code_cell(install_cell))
    cells += [
        (new_code_cell if cell.is_code else new_markdown_cell)(cell.source) for cell in guide.cells
    ]
    for index, cell in enumerate(cells):
        cell["id"] = hashlib.sha1(f"{guide.path.stem} {index}".encode()).hexdigest()[:8]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def write_page(guide: Guide, links: str, install: str, num_pictures: int) -> str:
    """Returns the page in Markdown."""
    parts = [write_opening(guide, links, install)]
    parts += [
        f"````python\n{cell.source}\n````" if cell.is_code else cell.source for cell in guide.cells
    ]
    names = (f"{guide.path.stem}_{number}.png" for number in range(num_pictures))
    parts += [f"![The picture that this guide draws]({name})" for name in names]
    return "\n\n".join(parts) + "\n"


def write_kaggle_metadata(guide: Guide, user: str) -> dict[str, Any]:
    """Returns the content of Kaggle's `kernel-metadata.json`."""
    slug = f"keras-deepseek-{guide.path.stem.replace('_', '-')}"
    shape = guide.header.get("Accelerator", "")
    return {
        "id": f"{user}/{slug}",
        "title": slug.replace("-", " "),  # Kaggle derives the slug from the title.
        "code_file": f"{guide.path.stem}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": shape == "NvidiaTeslaT4",
        "enable_tpu": shape == "TpuV5E8",
        "enable_internet": False,
        **({"machine_shape": shape} if shape else {}),
        "dataset_sources": [f"{user}/keras-deepseek-wheels"],
    }


def write_wheels_metadata(out: Path, user: str) -> None:
    """Writes Kaggle's metadata of the data set of wheels."""
    (out / "kaggle/wheels").mkdir(parents=True, exist_ok=True)
    wheels = {"title": "keras-deepseek wheels", "id": f"{user}/keras-deepseek-wheels"}
    text = json.dumps({**wheels, "licenses": [{"name": "Apache 2.0"}]}, indent=2)
    (out / "kaggle/wheels/dataset-metadata.json").write_text(f"{text}\n", encoding="utf-8")


def run(guide: Guide, install_cell: str = "") -> Ran:
    """Runs a guide as a notebook. Raises `GuideError` if a cell fails."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    notebook = write_notebook(guide, "", "", install_cell)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = {"timeout": 1800, "resources": {"metadata": {"path": folder}}}
        try:
            NotebookClient(notebook, **options).execute()
        except CellExecutionError as error:
            code = [cell for cell in guide.cells if cell.is_code]
            code = [Cell(1, install_cell), *code] if install_cell else code
            failed = code[sum("execution" in cell.metadata for cell in notebook.cells) - 1]
            traceback = re.sub(r"\x1b\[[\d;]*m", "", error.traceback)
            match = re.search(r"In\[\d+\], line (\d+)", traceback)
            line = failed.line + (int(match[1]) - 1 if match else 0)
            raise GuideError(guide.path, line, f"{error.ename}: {error.evalue}") from error
        except DeadKernelError as error:
            raise GuideError(guide.path, 1, f"A cell ended the process. {error}") from error
    return read_outputs(notebook)


def read_outputs(notebook: Any) -> Ran:
    """Returns what a notebook that ran has shown."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    pictures = [output.get("data", {}).get("image/png") for output in outputs]
    return Ran(printed, [base64.b64decode(picture) for picture in pictures if picture])


def print_outcome(name: str, start: float, ran: Ran) -> None:
    """Prints the seconds since `start`, the number of pictures and the last line."""
    last = ran.printed.rstrip().rpartition("\n")[2]
    seconds = time.monotonic() - start
    print(f"{name}, {seconds:.0f} s, {len(ran.pictures)} pictures: {last}", flush=True)


def run_and_print(guide: Guide, install_cell: str = "") -> list[bytes]:
    """Runs a guide, prints its time and its last line, and returns its pictures."""
    start = time.monotonic()
    ran = run(guide, install_cell)
    print_outcome(guide.path.stem, start, ran)
    return ran.pictures


def build(guide: Guide, pictures: list[bytes], out: Path, github: str, kaggle_user: str) -> None:
    """Writes notebook, page and Kaggle's folder of a guide."""
    name, needed = guide.path.stem, guide.header["Install"]
    links, badges = [f"[Download the notebook]({name}.ipynb)"], []
    install, install_cell = f"pip install {needed.replace('keras_deepseek', '.', 1)}", ""
    if github:
        opened = {
            "Colab": (f"{COLAB}/github/{github}/{name}.ipynb", f"{COLAB}/assets/colab-badge.svg"),
            "Kaggle": (
                f"{KAGGLE}/kernels/welcome?src=https://github.com/{github}/{name}.ipynb",
                f"{KAGGLE}/static/images/open-in-kaggle.svg",
            ),
        }
        links += [f"[Open in {site}]({link})" for site, (link, _) in opened.items()]
        badges = [f"[![Open in {site}]({badge})]({link})" for site, (link, badge) in opened.items()]
        address = "git+https://github.com/" + "/".join(github.split("/")[:2])
        package, *other_requirements = needed.replace('"', "").split()
        install = " ".join(["pip install", f'"{package} @ {address}"', *other_requirements])
        install_cell = f"%{install}"
    for folder in ("site/guides", "notebooks", f"kaggle/{name}"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        (out / f"site/guides/{name}_{number}.png").write_bytes(picture)
    page = write_page(guide, " · ".join(links), install, len(pictures))
    (out / f"site/guides/{name}.md").write_text(page, encoding="utf-8")
    notebook = write_notebook(guide, " ".join(badges), install, install_cell)
    for folder in ("site/guides", "notebooks"):
        nbformat.write(notebook, out / folder / f"{name}.ipynb")
    offline = write_notebook(guide, "", install, KAGGLE_INSTALL)
    nbformat.write(offline, out / f"kaggle/{name}/{name}.ipynb")
    metadata = json.dumps(write_kaggle_metadata(guide, kaggle_user), indent=2)
    (out / f"kaggle/{name}/kernel-metadata.json").write_text(f"{metadata}\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Builds what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument("guides", type=Path, nargs="*", help="the guides to build; all by default")
    parser.add_argument("--run", action="store_true", help="run each guide as a notebook")
    parser.add_argument(
        "--github",
        default="",
        metavar="OWNER/NAME/blob/BRANCH",
        help="where the notebooks will be on GitHub; without it they have no badges",
    )
    parser.add_argument(
        "--kaggle-user", default="INSERT_USERNAME_HERE", help="the owner of Kaggle's notebooks"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.github and not re.fullmatch(r"[\w.-]+/[\w.-]+/blob/[\w./-]+", options.github):
        parser.error(f"--github {options.github!r}: expected OWNER/NAME/blob/BRANCH.")
    paths = options.guides or sorted(Path(__file__).parent.glob("[0-9][0-9]_*.py"))
    try:
        guides = [read_guide(path) for path in paths]
        write_wheels_metadata(options.out, options.kaggle_user)
        pictures = [run_and_print(guide) if options.run else [] for guide in guides]
        for guide, drawn in zip(guides, pictures, strict=True):
            build(guide, drawn, options.out, options.github, options.kaggle_user)
    except (GuideError, OSError) as error:
        sys.exit(str(error))
    print(f"{len(guides)} guides in {options.out}")


if __name__ == "__main__":
    main()
