"""Draws the pictures of the pages.

    python docs/draw_pictures.py way
    python docs/draw_pictures.py rooms     # needs import-linter (the extra `dev`)
    KERAS_BACKEND=tensorflow python docs/draw_pictures.py batch

`way` shows the stages from a model to a service, for the start page. `rooms` and `batch` are drawn
from the code, for docs/explanation/architecture.md. `rooms` shows which room imports which. `batch`
runs the way of one batch, from `fit` to a served answer, and shows the calls on it in the order in
which they were made.
"""

import importlib
import inspect
import json
import sys
import tempfile
import threading
import tomllib
import urllib.request
from collections.abc import Callable
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "keras_deepseek"
FONT = "font-family='system-ui, sans-serif' font-size='13'"
ROW, BOX, GAP = 74, 112, 18

STATIONS = [
    ("training", "training.trainer.Trainer.fit"),
    ("training", "training.fit.session.Session.training"),
    ("training", "training.step.training_step.TrainingStep.__call__"),
    ("training", "training.step.gradients.batch_part.BatchPart.__call__"),
    ("training", "training.step.loss.batch_loss.BatchLoss.__call__"),
    ("training", "training.step.gradient_update.GradientUpdate.__call__"),
    ("callbacks", "callbacks.run_recorder.RunRecorder.on_train_end"),
    ("deploy", "deploy.exporter.Exporter.export"),
    ("deploy", "deploy.make_artifact.make_artifact"),
    ("deploy", "deploy.formats.onnx.OnnxFormat.write_program"),
    ("deploy", "deploy.verification.verify"),
    ("inference", "inference.executors.open_executor.open_executor"),
    ("artifacts", "artifacts.bundle.Bundle.open"),
    ("inference", "inference.http.http_application.HttpApplication.handle"),
    ("inference", "inference.batching.batcher.Batcher.submit"),
    ("inference", "inference.executors.runtimes.OnnxRuntime.run"),
]
"""The calls on a batch's way, by room. It fails if one is not made in this order."""

WAY = [
    ("models", "Build", "keras.Model", "Keras's layers, ours, or a model family", ""),
    ("training", "Train", "Trainer", "half precision, many devices, resumes", "model"),
    ("deploy", "Export", "Exporter", "ONNX, SavedModel, OpenVINO, TensorRT: verified", "bundle"),
    (
        "inference",
        "Serve",
        "keras-deepseek serve",
        "dynamic batches over HTTP and gRPC",
        "",
    ),
    ("operator", "Scale", "ModelDeployment", "as many pods on Kubernetes as requests need", ""),
]
"""The stages: the room, the step, the name to use, what it does, and what it passes on."""

COLOURS = {
    "models": "#e2e8f0",
    "operator": "#cffafe",
    "studio": "#fce7f3",
    "training": "#dbeafe",
    "callbacks": "#ede9fe",
    "deploy": "#dcfce7",
    "artifacts": "#fef3c7",
    "inference": "#fee2e2",
}


def main() -> None:
    """Draws the pictures that the command line names, or all."""
    draw = {"way": draw_way, "rooms": draw_rooms, "batch": draw_batch}
    for name in sys.argv[1:] or draw:
        text = draw[name]()
        path = ROOT / "docs" / "pictures" / f"{name}.svg"
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(text)} bytes")


# ---------------------------------------------------------------------------------------------
# The way from a model to a service.


def draw_way() -> str:
    """Returns the picture of the stages. It has no background: pages may be light or dark."""
    width, height, line = 420, 48, 84
    shapes = []
    for index, (room, step, name, sentence, passed_on) in enumerate(WAY):
        top = 4 + index * line
        if index:
            shapes.append(_arrow(60, top - line + height, 60, top))
        shapes += [
            _rounded(4, top, width - 8, height, COLOURS[room]),
            _text(16, top + 20, step, "font-weight='700'"),
            _text(width - 16, top + 20, name, "text-anchor='end' style='font-family: monospace'"),
            _text(16, top + 38, sentence),
        ]
        if passed_on:
            shapes += _pill(74, top + height + 6, passed_on)
        if room == "training":
            shapes += _pill(226, top + height + 6, "run record")
            shapes.append(_arrow(312, top + height + 17, 336, top + height + 17))
            shapes += _pill(338, top + height + 6, "Studio", COLOURS["studio"])
    return _svg(width, len(WAY) * line - (line - height) + 8, shapes, background="none")


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f"<text x='{x:g}' y='{y:g}' {FONT} fill='#0f172a' {more}>{escape(text)}</text>"


def _rounded(x: float, y: float, width: float, height: float, fill: str) -> str:
    radius = min(8, height / 2)
    return (
        f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='{radius:g}' "
        f"fill='{fill}' stroke='#64748b'/>"
    )


def _pill(x: float, y: float, text: str, fill: str = COLOURS["artifacts"]) -> list[str]:
    width = 20 + 6.6 * len(text)
    return [
        _rounded(x, y, width, 23, fill),
        _text(x + width / 2, y + 16, text, "text-anchor='middle'"),
    ]


# ---------------------------------------------------------------------------------------------
# The rooms.


def draw_rooms() -> str:
    """Returns the picture of the rooms: a row imports only from rows below it."""
    rows = read_rows()
    imports = find_imports([room for row in rows for room in row])
    width = max(len(row) for row in rows) * (BOX + GAP) + 9 * GAP
    positions: dict[str, tuple[float, float]] = {}
    for index, row in enumerate(rows):
        margin = (width - len(row) * (BOX + GAP) + GAP) / 2
        for column, room in enumerate(row):
            positions[room] = margin + column * (BOX + GAP), 16 + index * ROW
    shapes = [_line(positions, room, other) for room, other in without_detours(imports)]
    shapes += [_box(x, y, room) for room, (x, y) in positions.items()]
    return _svg(width, 16 + len(rows) * ROW, shapes)


def read_rows() -> list[list[str]]:
    """Returns the rooms of the import contract by row, those that exist, from top to bottom."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "rows")
    rows = []
    for layer in layers:
        if layer == "__main__":  # It only starts `cli`.
            continue
        names = [part.strip(" ()") for part in layer.replace(":", "|").split("|")]
        here = [name for name in names if (ROOT / PACKAGE / name).exists()]
        # Every command has the parser: its arrows would hide the others.
        files = [name for name in names if name != "command_parser"]
        here += [name for name in files if (ROOT / PACKAGE / f"{name}.py").exists()]
        if here:
            rows.append(here)
    return rows


def find_imports(rooms: list[str]) -> set[tuple[str, str]]:
    """Returns which room imports which, directly."""
    import grimp

    graph = grimp.build_graph(PACKAGE)
    imports = set()
    for module in graph.modules:
        room = module.split(".")[1] if "." in module else None
        for imported in graph.find_modules_directly_imported_by(module):
            other = imported.split(".")[1] if "." in imported else None
            if room in rooms and other in rooms and room != other:
                imports.add((room, other))
    return imports


def without_detours(imports: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns the imports that no chain of others implies."""

    def reaches(start: str, end: str) -> bool:
        nexts = [other for room, other in imports if room == start]
        return end in nexts or any(reaches(next_room, end) for next_room in nexts)

    return sorted(
        (room, other)
        for room, other in imports
        if not any(
            middle != other and reaches(middle, other)
            for start, middle in imports
            if start == room and middle != other
        )
    )


# ---------------------------------------------------------------------------------------------
# The way of a batch.


def draw_batch() -> str:
    """Returns the picture of the calls that take a batch from `fit` to a served answer."""
    calls = trace(run_one_batch)
    last = 0
    height, width, line = 44, 760, 60
    shapes = []
    for index, (room, name) in enumerate(STATIONS):
        last = min((call for call in calls[name] if call > last), default=0)
        if not last:
            raise SystemExit(f"{name} was not called, or not in this order: mend STATIONS.")
        top = 12 + index * line
        sentence = _first_sentence(name)
        shapes.append(
            f"<rect x='12' y='{top}' width='{width - 24}' height='{height}' rx='6' "
            f"fill='{COLOURS[room]}' stroke='#94a3b8'/>"
            f"<text x='24' y='{top + 18}' {FONT} font-weight='600'>{escape(_short(name))}</text>"
            f"<text x='{width - 24}' y='{top + 18}' {FONT} text-anchor='end' "
            f"fill='#475569'>{room}</text>"
            f"<text x='24' y='{top + 35}' {FONT}>{escape(sentence)}</text>"
        )
        if index:
            x, end = width / 2, top
            shapes.append(_arrow(x, end - line + height, x, end))
    return _svg(width, 12 + len(STATIONS) * line, shapes)


def run_one_batch() -> None:
    """Trains a small model on one batch, exports it, serves it and asks it over HTTP."""
    import keras
    import numpy as np

    from keras_deepseek.deploy import Exporter
    from keras_deepseek.inference import ServingEngine
    from keras_deepseek.training import Trainer

    x, y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
    with tempfile.TemporaryDirectory() as folder:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)], name="small")
        trainer = Trainer(model, optimizer="sgd", loss="mse", run_record=f"{folder}/run.sqlite")
        trainer.fit(x, y, batch_size=8, verbose=0)
        Exporter(model, backend="onnx").export(f"{folder}/small")
        with ServingEngine(model=f"{folder}/small", name="small") as engine:
            server = engine.serve(http_port=0)
            body = json.dumps({"instances": x.tolist()}).encode()
            with urllib.request.urlopen(f"{server.url}/v1/models/small:predict", body) as answer:
                assert len(json.load(answer)["predictions"]) == len(x)


def trace(run: Callable[[], None]) -> dict[str, list[int]]:
    """Returns, for each station, which of all calls of functions were its own."""
    codes = {_find(name).__code__: name for _, name in STATIONS}
    calls: dict[str, list[int]] = {name: [] for _, name in STATIONS}
    count = 0

    def note(frame, event, _argument):
        nonlocal count
        if event == "call":
            count += 1
            name = codes.get(frame.f_code)
            if name is not None:
                calls[name].append(count)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return calls


def _find(name: str):
    """Returns the function of a dotted name below the package."""
    parts = name.split(".")
    end = next((index for index, part in enumerate(parts) if part[0].isupper()), -1)
    member = importlib.import_module(".".join([PACKAGE, *parts[:end]]))
    for part in parts[end:]:
        member = inspect.getattr_static(member, part)
        member = getattr(member, "__func__", member)
    return inspect.unwrap(member)


def _first_sentence(name: str) -> str:
    """Returns the first line of a function's docstring, or of the class whose call it is."""
    function = _find(name)
    text = inspect.getdoc(function)
    if not text or name.endswith("__call__"):
        text = text or inspect.getdoc(_find(name.rpartition(".")[0]))
    return (text or "").splitlines()[0] if text else ""


def _short(name: str) -> str:
    parts = name.split(".")
    start = next((index for index, part in enumerate(parts) if part[0].isupper()), -1)
    return ".".join(parts[start:])


# ---------------------------------------------------------------------------------------------
# Shapes.


def _svg(width: float, height: float, shapes: list[str], background: str = "white") -> str:
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' "
        f"width='{width:g}' height='{height:g}'>"
        "<defs><marker id='end' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' "
        "markerHeight='7' orient='auto'><path d='M0 0L8 4L0 8z' fill='#64748b'/></marker></defs>"
        f"<rect width='{width:g}' height='{height:g}' fill='{background}'/>"
    )
    return "\n".join([head, *shapes, "</svg>"]) + "\n"


def _box(x: float, y: float, text: str) -> str:
    return (
        f"<rect x='{x:g}' y='{y:g}' width='{BOX}' height='34' rx='6' fill='#f1f5f9' "
        f"stroke='#64748b'/><text x='{x + BOX / 2:g}' y='{y + 22:g}' {FONT} "
        f"text-anchor='middle'>{escape(text)}</text>"
    )


def _line(positions: dict[str, tuple[float, float]], start: str, end: str) -> str:
    """Returns an arrow between two boxes, round the boxes of the rows between them."""
    (x, y), (end_x, end_y) = positions[start], positions[end]
    if y == end_y:
        start_x, stop_x = (x, end_x + BOX) if x > end_x else (x + BOX, end_x)
        return _arrow(start_x, y + 17, stop_x, end_y + 17)
    x, y, end_x = x + BOX / 2, y + 34, end_x + BOX / 2
    rows = round((end_y - y) / ROW + 0.5)
    if rows <= 1:
        return _arrow(x, y, end_x, end_y)
    side = -1 if x < end_x or (x == end_x and rows % 2) else 1
    bend = x + side * (BOX * 0.75 + 16 * rows)
    return (
        f"<path d='M{x:g} {y:g}C{bend:g} {y + 30:g} {bend:g} {end_y - 30:g} {end_x:g} {end_y:g}' "
        "fill='none' stroke='#64748b' marker-end='url(#end)'/>"
    )


def _arrow(x: float, y: float, end_x: float, end_y: float) -> str:
    return (
        f"<line x1='{x:g}' y1='{y:g}' x2='{end_x:g}' y2='{end_y:g}' stroke='#64748b' "
        "marker-end='url(#end)'/>"
    )


if __name__ == "__main__":
    main()
