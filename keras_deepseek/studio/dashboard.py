"""The dashboard file: title, panels, hidden names and limits of findings."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from keras_deepseek.errors import InvalidInputError, MissingExtraError, unknown_name_message
from keras_deepseek.studio.curve_findings import Thresholds


@dataclass(frozen=True)
class Panel:
    """A chart of the Training view.

    Args:
        names: The names that it shows.
        log: True for a logarithmic axis.
        smoothing: The share of the points to smooth over. `None` leaves it to the page.
    """

    names: tuple[str, ...]
    log: bool = False
    smoothing: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """The settings of a dashboard file.

    Args:
        title: The title of the page.
        panels: The charts, in their order. Names that no panel has follow.
        hidden: Names that are not shown.
        thresholds: The limits of the findings.
    """

    title: str = "Studio"
    panels: tuple[Panel, ...] = ()
    hidden: tuple[str, ...] = ()
    thresholds: Thresholds = field(default_factory=Thresholds)

    def as_page_settings(self) -> dict[str, Any]:
        """Returns the settings that the page needs, as values for JSON."""
        return {
            "title": self.title,
            "panels": [asdict(panel) for panel in self.panels],
            "hidden": list(self.hidden),
        }


def read_dashboard(path: str | os.PathLike[str]) -> Dashboard:
    """Reads a dashboard from a YAML or JSON file.

    Raises:
        InvalidInputError: The file can't be read, or has an unknown key or a wrong value.
        MissingExtraError: The file is YAML, and PyYAML is not installed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"The dashboard {str(path)!r} can't be read: {error}") from error
    content = _parse(Path(path), text)
    reader = _Reader(str(path), text)
    top = reader.mapping("the file", content, _names(Dashboard))
    panels = top.get("panels") or []
    if not isinstance(panels, list):
        raise reader.error("panels", "must be a list", panels)
    limits = reader.mapping("thresholds", top.get("thresholds") or {}, _names(Thresholds))
    for name, value in limits.items():
        if not _is_number(value) or not value >= 0:
            raise reader.error(name, "must be a number of at least 0", value)
    title = top.get("title", Dashboard.title)
    if not isinstance(title, str):
        raise reader.error("title", "must be a text", title)
    return Dashboard(
        title,
        tuple(_read_panel(reader, panel) for panel in panels),
        reader.names("hidden", top.get("hidden") or []),
        Thresholds(**limits),
    )


def _read_panel(reader: "_Reader", content: Any) -> Panel:
    options = reader.mapping("a panel", content, _names(Panel))
    names = reader.names("names", options.get("names"))
    log, smoothing = options.get("log", False), options.get("smoothing")
    if not isinstance(log, bool):
        raise reader.error("log", "must be true or false", log)
    if smoothing is not None and not (_is_number(smoothing) and 0 <= smoothing < 1):
        raise reader.error("smoothing", "must be a number of at least 0 and below 1", smoothing)
    return Panel(names, log, smoothing)


def _parse(path: Path, text: str) -> Any:
    try:
        if path.suffix == ".json":
            return json.loads(text or "{}")
        import yaml
    except ImportError as error:
        raise MissingExtraError("yaml", "serving", "to read a YAML dashboard") from error
    except ValueError as error:
        raise InvalidInputError(f"The dashboard {str(path)!r} is not JSON: {error}") from error
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InvalidInputError(f"The dashboard {str(path)!r} is not YAML: {error}") from error


class _Reader:
    """Checks the values of a file, and names the line of what is wrong."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()

    def mapping(self, subject: str, value: Any, keys: tuple[str, ...]) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self.error(subject, "must have keys", value)
        for key in value:
            if key not in keys:
                message = unknown_name_message(f"key of {subject}", key, keys)
                raise InvalidInputError(f"{self._path}{self._line(key)}: {message}")
        return value

    def names(self, subject: str, value: Any) -> tuple[str, ...]:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.error(subject, "must be a list of names", value)
        return tuple(names)

    def error(self, subject: str, expected: str, value: Any) -> InvalidInputError:
        where = f"{self._path}{self._line(subject)}"
        return InvalidInputError(f"{where}: {subject} {expected}, received {value!r}.")

    def _line(self, key: object) -> str:
        as_key = re.compile(rf"(^|[\s{{,\[])[\"']?{re.escape(str(key))}[\"']?\s*:")
        for number, line in enumerate(self._lines, 1):
            if as_key.search(line.partition(" #")[0]):
                return f", line {number}"
        return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names(kind: Any) -> tuple[str, ...]:
    return tuple(attribute.name for attribute in fields(kind))
