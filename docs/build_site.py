"""Assembles the sources of the documentation site: `python docs/build_site.py OUT [--run]`.

`OUT/docs` gets the pages of `docs/`, the guides and the API reference, and `OUT/mkdocs.yml` the
settings of `mkdocs.yml` with the navigation, which follows from the folders. Then `zensical build
-c -s -f OUT/mkdocs.yml` makes `OUT/site`; it also finds dead links from page to page. With `--run`
the guides are run, and their pages show what they draw.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from write_reference import write_reference

ROOT = Path(__file__).parents[1]
SECTIONS = {
    "guides": "Guides",
    "how_to": "How to",
    "explanation": "Explanation",
    "reference": "Reference",
    "measured": "Measured",
}
OF_EXPLANATION = ("coming_from.md",)
"""The pages of `docs/` itself that belong to this section. The others hold what was measured."""
FENCE = re.compile(r"^( *)(```+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def build_site(out: Path, *options: str, root: Path = ROOT) -> None:
    """Writes the sources, or raises `SystemExit` with a line for each dead link."""
    if out.is_file() or (out.exists() and any(out.iterdir())):
        sys.exit(f"{out} is not empty. Name an empty folder, or a new one.")
    docs = out / "docs"
    tools = shutil.ignore_patterns("*.py", "*.txt", "__pycache__")
    shutil.copytree(root / "docs", docs, ignore=tools)
    for name in ("keras_deepseek", "docs/keras_docstrings.py"):  # What mkdocstrings reads.
        (out / Path(name).name).symlink_to(root / name)
    command = [sys.executable, root / "guides/build.py", out / "guides", *options]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)  # It has said what is wrong.
    shutil.copytree(out / "guides/site/guides", docs / "guides")
    faults = [
        fault for page in sorted(docs.rglob("*.md")) for fault in rewrite_links(page, docs, root)
    ]
    if faults:
        sys.exit("\n".join(faults))
    write_reference(docs / "reference/api", root)
    settings = (root / "mkdocs.yml").read_text(encoding="utf-8")
    settings += f"nav: {json.dumps(make_navigation(docs))}\n"
    (out / "mkdocs.yml").write_text(settings, encoding="utf-8")


def rewrite_links(page: Path, docs: Path, root: Path) -> list[str]:
    """Makes the links of a page fit the site, and returns a line for each that leads nowhere.

    A link to a guide leads to its page. A link to another file of the repository becomes code.
    """
    name = page.relative_to(docs)
    source = root / (name.with_suffix(".py") if name.parts[0] == "guides" else "docs" / name)
    text = page.read_text(encoding="utf-8")
    code = [fence.span() for fence in FENCE.finditer(text)]
    faults = []

    def rewrite(link: re.Match[str]) -> str:
        if any(start < link.start() < end for start, end in code):
            return link[0]
        target, *anchor = link[3].split("#", 1)
        if not target or re.match(r"\w+:", target) or (page.parent / target).is_file():
            return link[0]
        path = Path(os.path.normpath(source.parent / target))
        if not path.is_relative_to(root) or not path.exists():
            line = source.read_text(encoding="utf-8").partition(link[3])[0].count("\n") + 1
            faults.append(f"{source.relative_to(root)}:{line}: {link[3]} does not exist.")
            return link[0]
        file = path.relative_to(root)
        site_path = docs / (file.relative_to("docs") if file.parts[0] == "docs" else file)
        site_path = site_path.with_suffix(".md") if file.parts[0] == "guides" else site_path
        if site_path.is_file():
            new_target = "#".join([os.path.relpath(site_path, page.parent), *anchor])
            return f"{link[1]}[{link[2]}]({new_target})"
        quoted = f"`{file.as_posix()}`"
        return quoted if quoted[:-1].endswith(link[2].strip("`")) else f"{link[2]} ({quoted})"

    page.write_text(LINK.sub(rewrite, text), encoding="utf-8")
    return faults


def make_navigation(docs: Path) -> list[object]:
    """Returns the navigation: a section for each folder. A page is named by its own title."""
    alone = {page.name for page in docs.glob("*.md")} - {"index.md"}
    top_pages = {
        "explanation": alone & set(OF_EXPLANATION),
        "measured": alone - set(OF_EXPLANATION),
    }
    navigation: list[object] = [{"Home": "index.md"}]
    for folder, title in SECTIONS.items():
        if folder == "guides":
            pages = list_guides(docs)
        else:
            pages = list_pages(docs, folder, top_pages.get(folder, ()))
        if folder == "reference":
            rooms = sorted((docs / "reference/api").iterdir())
            api = [
                {room.name: list_pages(docs, f"reference/api/{room.name}")}
                for room in rooms
                if room.is_dir()
            ]
            pages.insert(1, {"API": ["reference/api/index.md", *api]})
        if pages:
            navigation.append({title: pages})
    return navigation


def list_guides(docs: Path) -> list[object]:
    """Returns the guides by level, as the table of the start page names them."""
    table = re.compile(r"^\| *(\w*) *\| *\[(.+?)\]\((guides/\w+\.md)\)", re.MULTILINE)
    levels: dict[str, list[object]] = {}
    unlisted, last = set(map(str, list_pages(docs, "guides"))), ""
    for level, name, page in table.findall((docs / "index.md").read_text(encoding="utf-8")):
        last = level or last
        levels.setdefault(last, []).append({name: page})
        unlisted.discard(page)
    return [*({level.capitalize(): pages} for level, pages in levels.items()), *sorted(unlisted)]


def list_pages(docs: Path, folder: str, above: Collection[str] = ()) -> list[object]:
    """Returns the pages of a folder, in the order and below the headings of its `index.md`.

    Args:
        docs: The folder of all pages.
        folder: The folder to list.
        above: Names of pages in `docs` itself that belong to the folder.
    """
    index = docs / folder / "index.md"
    text = index.read_text(encoding="utf-8") if index.exists() else ""
    unlisted = {page.name: f"{folder}/{page.name}" for page in sorted((docs / folder).glob("*.md"))}
    unlisted |= {f"../{name}": name for name in sorted(above)}
    unlisted.pop("index.md", None)
    pages: list[object] = [f"{folder}/index.md"] if text else []
    opening, *sections = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    for heading, part in [("", opening), *zip(sections[::2], sections[1::2], strict=True)]:
        links = re.findall(r"\]\(((?:\.\./)?\w+\.md)\)", part)
        listed = [unlisted.pop(link) for link in links if link in unlisted]
        pages += [{heading: listed}] if heading and listed else listed
    return pages + list(unlisted.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("out", type=Path, help="an empty folder, or a new one")
    arguments, guide_arguments = parser.parse_known_args()
    build_site(arguments.out.resolve(), *guide_arguments)  # The others are for guides/build.py.
