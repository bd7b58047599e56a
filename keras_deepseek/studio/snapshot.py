"""A report: the page with its scripts and its numbers in one HTML file."""

import base64
import hashlib
import json
import os
import re
from html import escape
from pathlib import Path
from typing import Any

from keras_deepseek.checks import check_file_path
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.studio.dashboard import Dashboard
from keras_deepseek.studio.store import MAX_SERIES, Store

_STATIC = Path(__file__).parent / "static"
_PIXELS, _LARGE_PIXELS = 300, 800
_LARGE = ("step_loss", "loss", "val_loss")
_IMPORT = re.compile(r'^import\s*\{([^}]*)\}\s*from\s*"([^"]+)";?$', re.MULTILINE)
_EXPORT = re.compile(r"^export (async function|function|const|class) (\w+)", re.MULTILINE)
_EXPORTED = re.compile(r"export\s*\{([^}]*)\};?")


def make_report(store: Store, dashboard: Dashboard) -> str:
    """Returns the page with all runs, as one HTML file that needs no server."""
    readers = store.refresh()
    readable = [(run, reader) for run, reader in readers.items() if reader.problem is None]
    # As the page asks for them: run, name, version so far (-1: none), pixels, share of smoothing.
    series = [
        [run, name, -1, _LARGE_PIXELS if name in _LARGE else _PIXELS, 0]
        for run, reader in readable
        for name in reader.ends
    ][-MAX_SERIES:]
    data = {
        "settings": {"folder": store.folder.name, "dashboard": dashboard.as_page_settings()},
        "order": list(readers),
        "series": store.read_series({}, series),
        "vectors": {
            f"{run}\n{name}": {"version": reader.version, **store.read_vectors(run, name)}
            for run, reader in readable
            for name in reader.vector_names
        },
        "findings": {run: store.findings(run) for run, _ in readable},
        "documents": {
            f"{run}\n{name}": reader.document(name)
            for run, reader in readable
            for name in reader.documents
            if not name.startswith("vector:")
        },
        # After all the others, which may find that a file is damaged.
        "runs": {
            run: {"version": reader.version, **reader.summary()} for run, reader in readers.items()
        },
    }
    style = _read("vendor/uplot.css") + _read("style.css")
    script = _read("vendor/uplot.js") + "\n" + _bundle("app.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(dashboard.title)}</title><link rel="icon" href="data:,">'
        f'<style>{style}</style></head><body><div id="app"></div>'
        f'<script id="report" type="application/json">{_as_json(data)}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def write_report(path: str | os.PathLike[str], page: str) -> None:
    """Writes a report, and makes the folders that are missing.

    Raises:
        InvalidInputError: The file can't be written.
    """
    file = Path(check_file_path("path", path))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"The report {str(path)!r} can't be written: {error}") from error


def _as_json(data: Any) -> str:
    """Returns JSON in which no text can end the script that holds it."""
    return json.dumps(data, separators=(",", ":"), default=str).replace("<", "\\u003c")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _read(name: str) -> str:
    # No text of a script may end its element.
    return (_STATIC / name).read_text(encoding="utf-8").replace("</script", "<\\/script")


def _bundle(start: str) -> str:
    """Returns a JavaScript module, and all that it imports, as one script without modules.

    Each module becomes a function, called at once, whose result is an object of its exports.
    """
    done: list[str] = []
    parts = ['"use strict";const modules={};']

    def add(name: str) -> None:
        if name in done:
            return
        done.append(name)
        text = _read(name)
        for _, source in _IMPORT.findall(text):
            add(source.removeprefix("./"))
        exports = [name for _, name in _EXPORT.findall(text)]
        text = _EXPORT.sub(r"\1 \2", text)
        pairs = [(export, export) for export in exports]  # The name outside, and inside.
        for group in _EXPORTED.findall(text):
            for item in group.split(","):
                inner, _, outer = item.strip().partition(" as ")
                pairs.append((outer or inner, inner))
        text = _EXPORTED.sub("", text)
        text = _IMPORT.sub(
            lambda match: "const {{{}}} = modules[{}];".format(
                match[1].replace(" as ", ": "), json.dumps(match[2].removeprefix("./"))
            ),
            text,
        )
        returned = ",".join(f"{outer}:{inner}" for outer, inner in pairs)
        parts.append(f"modules[{json.dumps(name)}]=(()=>{{{text}\nreturn {{{returned}}}}})();")

    add(start)
    return "\n".join(parts)
