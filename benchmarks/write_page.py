"""Writes docs/numbers.md and its pictures from the results of the benchmarks.

    python benchmarks/write_page.py

Each JSON file under `benchmarks/results/` is a section. What a peer does better comes first in the
page, then the targets that are missed.
"""

import ast
import json
import math
import re
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from result import RESULTS, Figure

PAGE = Path(__file__).parents[1] / "docs" / "numbers.md"
PICTURES = PAGE.parent / "pictures" / "numbers"
KEYS = ("benchmark", "command", "date", "machine", "versions")
HEAD = """# Numbers

Each figure is from a benchmark that ran ours and the peer in turns, on the same machine. The
command above a table gives its figures anew. `python benchmarks/write_page.py` draws this page from
the JSON files in `benchmarks/results/`; don't edit it. The head of each script says which packages
its peers need. `--python` and the like name the interpreter of the environment that has them. Where
processor time counts, two benchmarks may have run at once, each on a core of its own.

**Advantage** says how many times as good ours is as the best peer that was measured. Below 1, the
peer is ahead. It is bold from 1 % on, because equal programs differ by less.

**Target** is the least advantage that we ask of ourselves, or the limit of a figure that has no
peer. A missing target is one that we did not set. No figure is from a GPU or TPU.
"""


@dataclass(frozen=True)
class Result:
    """A result file."""

    name: str
    content: dict[str, Any]

    @property
    def figures(self) -> list[Figure]:
        """The figures, those that lose to a peer or miss their target first."""
        figures = [Figure(**fields) for fields in self.content["figures"]]
        return sorted(figures, key=lambda figure: (not is_behind(figure), figure.holds))


def is_behind(figure: Figure) -> bool:
    """Returns True if the peer is ahead by over 1 %: medians of equal programs differ by that."""
    return figure.advantage is not None and figure.advantage < 0.99  # noqa: PLR2004


def read_results(folder: Path = RESULTS) -> list[Result]:
    """Returns the results, by name.

    Raises:
        ValueError: A file is no result, or lacks a key, such as that of the machine.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            missing = [key for key in KEYS if not content.get(key)]
            result = Result(path.stem, content)
            if not missing:
                write_section(result)  # It fails where the result has another form.
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: {error.msg}.") from error
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            text = f"{path}:1: this is no result: {error!r}. Run the benchmark again."
            raise ValueError(text) from error
        if missing:
            raise ValueError(f'{path}:1: "{missing[0]}" is missing. Run the benchmark again.')
        results.append(result)
    return results


def anchor(result: Result, figure: Figure) -> str:
    """Returns the figure's anchor on the page, to which other pages link."""
    words = f"{result.name} {figure.backend} {figure.name} {figure.peer}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def format_number(value: float) -> str:
    """Returns a number with three digits that count."""
    if value == int(value) and abs(value) < 1e15:  # noqa: PLR2004 - beyond, a float has no ones
        return f"{int(value):,}"
    digits = f"{value:.3g}"
    return f"{float(digits):,.0f}" if abs(value) >= 100 else digits  # noqa: PLR2004


def format_advantage(advantage: float) -> str:
    """Returns how many times as good ours is: with two decimals near 1, else with three digits."""
    if math.isinf(advantage):  # Ours is 0.
        return "∞"
    return f"{advantage:.2f}" if advantage < 10 else format_number(advantage)  # noqa: PLR2004


def format_target(figure: Figure) -> str:
    """Returns the target as the page shows it."""
    if figure.target is None:
        return ""
    if figure.advantage is not None:
        text = f"{format_number(figure.target)} times"
    else:
        sign = "≤" if figure.is_less_better else "≥"
        text = f"{sign} {format_number(figure.target)} {figure.unit}"
    return text if figure.holds else f"{text}, **missed**"


def write_cells(result: Result, figure: Figure) -> dict[str, str]:
    """Returns the cells of a figure's row, by column."""
    peer = advantage = ""
    if figure.theirs is not None and figure.advantage is not None:
        peer = f"{format_number(figure.theirs)} {figure.unit} ({figure.peer})"
        advantage = format_advantage(figure.advantage)
        advantage = f"**{advantage}**" if is_behind(figure) else advantage
    return {
        "figure": f'<a id="{anchor(result, figure)}"></a>{escape(figure.name)}',
        "backend": figure.backend,
        "ours": f"{format_number(figure.ours)} {figure.unit}",
        "best peer": peer,
        "advantage": advantage,
        "target": format_target(figure),
    }


def write_table(rows: list[dict[str, str]]) -> list[str]:
    """Returns the lines of a table, without the columns that no row needs."""
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(row[name] for name in columns) + " |" for row in rows]


def write_title(result: Result) -> str:
    """Returns the title of a result's section."""
    return result.name.replace("_", " ").capitalize()


def write_section(result: Result) -> str:
    """Returns the section of a result."""
    content = result.content
    script = PAGE.parents[1] / "benchmarks" / f"{content['benchmark']}.py"
    claim = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    machine, versions = content["machine"], content["versions"]
    lines = [
        f"## {write_title(result)}",
        "",
        " ".join(claim.partition("\n\n")[0].split()),
        "",
        "```bash",
        content["command"],
        "```",
        "",
    ]
    if result.figures:
        lines += [*write_table([write_cells(result, figure) for figure in result.figures]), ""]
    for title, columns in content["tables"].items():
        lines += [f"**{title}**", "", "| | " + " | ".join(columns) + " |"]
        lines.append("|" + "---|" * (len(columns) + 1))
        for row in dict.fromkeys(row for cells in columns.values() for row in cells):
            cells = (cells.get(row, "-") for cells in columns.values())
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        lines.append("")
    if any(figure.advantage for figure in result.figures):
        lines += [f"![Advantage over the best peer](pictures/numbers/{result.name}.svg)", ""]
    lines.append(
        f"{content['date']}; {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB; Python {machine['python']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "."
    )
    return "\n".join(lines) + "\n"


def write_losses(results: list[Result]) -> str:
    """Returns the table of figures in which a peer is ahead, or the target is missed."""
    rows = [
        (figure.advantage or 0.0, is_behind(figure), write_loss(result, figure))
        for result in results
        for figure in result.figures
        if is_behind(figure) or not figure.holds
    ]
    lines = ["## Where we are not ahead", ""]
    if not rows:
        return "\n".join([*lines, "No figure is behind a peer or misses its target.", ""])
    lines += ["| of | figure | advantage | target |", "|---|---|---|---|"]
    lines += [row for *_, row in sorted(rows, key=lambda row: (not row[1], row[0]))]
    return "\n".join(lines) + "\n"


def write_loss(result: Result, figure: Figure) -> str:
    """Returns a row of the table of losses."""
    link = f"[{escape(figure.title)}](#{anchor(result, figure)})"
    compared = f"{format_number(figure.ours)} {figure.unit}"
    if figure.advantage is not None:
        compared = f"{format_advantage(figure.advantage)} times {figure.peer}"
    return f"| {write_title(result)} | {link} | {compared} | {format_target(figure)} |"


def write_page(results: list[Result]) -> str:
    """Returns the page."""
    return "\n".join([HEAD, write_losses(results), *map(write_section, results)])


def draw(result: Result) -> str:
    """Returns the picture of a result: a bar for each figure that has a peer."""
    figures = [figure for figure in result.figures if figure.advantage]
    x_zero, max_width, row = 400, 300, 22
    most = max([2.0, *(min(figure.advantage or 0.0, 20.0) for figure in figures)])
    scale = max_width / most
    height = row * len(figures) + 34
    parity = x_zero + scale
    shapes = []
    for index, figure in enumerate(figures):
        top, times = 8 + index * row, figure.advantage or 0.0
        colour = "#c2410c" if is_behind(figure) else "#2563eb"
        title, width = escape(figure.title[:62]), scale * min(times, most)
        shapes += [
            f'<text x="{x_zero - 8}" y="{top + 13}" text-anchor="end">{title}</text>',
            f'<rect x="{x_zero}" y="{top + 2}" width="{width:.1f}" height="14" fill="{colour}"/>',
            f'<text x="{x_zero + width + 6:.1f}" y="{top + 13}">{format_advantage(times)}</text>',
        ]
        if figure.target and figure.target <= most:
            mark = x_zero + scale * figure.target
            shapes.append(f'<path d="M{mark:.1f} {top}v18" stroke="#6b7280" stroke-width="2"/>')
    shapes += [
        f'<path d="M{parity:.1f} 4V{height - 24}" stroke="#6b7280" stroke-dasharray="3 3"/>',
        f'<text x="{parity:.1f}" y="{height - 8}" text-anchor="middle">the best peer</text>',
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x_zero + max_width + 60} {height}" '
        'role="img" font-family="system-ui, sans-serif" font-size="12" fill="#6b7280">'
        f"<title>Advantage over the best peer: {escape(result.name)}</title>"
        + "".join(shapes)
        + "</svg>\n"
    )


def draw_all(results: list[Result]) -> dict[Path, str]:
    """Returns each file that the page consists of, with its content."""
    files = {PAGE: write_page(results)}
    for result in results:
        if any(figure.advantage for figure in result.figures):
            files[PICTURES / f"{result.name}.svg"] = draw(result)
    return files


def main() -> None:
    try:
        files = draw_all(read_results())
    except ValueError as error:
        sys.exit(str(error))
    for path in PICTURES.glob("*.svg"):
        if path not in files:
            path.unlink()
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(PAGE.parents[1]))


if __name__ == "__main__":
    main()
