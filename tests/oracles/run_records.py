"""Run records of invented trainings: healthy, diverging, with a starved expert, killed, ...

`python tests/oracles/run_records.py FOLDER` writes one of each kind, to look at in Studio.
"""

import json
import math
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np

TABLES = """
CREATE TABLE properties (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE scalars (step INTEGER NOT NULL, name TEXT NOT NULL, value REAL, time REAL NOT NULL,
    PRIMARY KEY (name, step)) WITHOUT ROWID;
CREATE TABLE vectors (name TEXT NOT NULL, step INTEGER NOT NULL, time REAL, "values" BLOB,
    PRIMARY KEY (name, step)) WITHOUT ROWID;
CREATE TABLE documents (name TEXT PRIMARY KEY, version INTEGER, time REAL, json TEXT);
CREATE TABLE commands (id INTEGER PRIMARY KEY, name TEXT, asked REAL, answered REAL, answer TEXT);
"""

FAULTS = (
    *("healthy", "diverging", "nan", "spike", "plateau", "overfitting", "frozen", "starved"),
    *("waiting", "killed", "failed"),
)
LAYERS = [
    "embedding",
    *(f"block_{n}/{part}" for n in range(4) for part in ("attention", "feedforward")),
    "head",
]
EXPERTS = [f"block_{n}/experts/{e}" for n in (1, 3) for e in range(8)]


class InventedRun:
    """A run record that is written row by row, as a training would write it."""

    def __init__(self, path, *, form=2):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        with self.connection() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(TABLES)
        self.describe(form=form)

    def connection(self):
        """Returns a connection that is committed and closed by `with`."""
        return _Committed(sqlite3.connect(self.path))

    def describe(self, **properties):
        rows = [(name, json.dumps(value)) for name, value in properties.items()]
        with self.connection() as connection:
            connection.executemany("INSERT OR REPLACE INTO properties VALUES (?, ?)", rows)

    def log(self, name, steps, values, times):
        rows = [
            (int(s), name, None if math.isnan(v) else float(v), float(t))
            for s, v, t in zip(steps, values, times, strict=True)
        ]
        with self.connection() as connection:
            connection.executemany("INSERT OR REPLACE INTO scalars VALUES (?, ?, ?, ?)", rows)

    def log_vectors(self, name, labels, steps, matrix, times):
        self.write(f"vector:{name}", {"labels": labels})
        rows = [
            (name, int(s), float(t), column.astype("<f4").tobytes())
            for s, t, column in zip(steps, times, np.asarray(matrix).T, strict=True)
        ]
        with self.connection() as connection:
            connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)

    def write(self, name, document):
        with self.connection() as connection:
            connection.execute(
                """INSERT INTO documents VALUES (?, 1, ?, ?) ON CONFLICT (name) DO UPDATE
                   SET version = version + 1, time = excluded.time, json = excluded.json""",
                (name, time.time(), json.dumps(document)),
            )


class _Committed:
    def __init__(self, connection):
        self.wrapped = connection

    def __enter__(self):
        self.wrapped.execute("PRAGMA synchronous=OFF")  # Tests don't survive a power cut.
        return self.wrapped

    def __exit__(self, *error):
        with closing(self.wrapped):
            self.wrapped.commit()


def invent(path, fault="healthy", *, steps=1200, seed=0, rate=3e-3, begin=None, documents=True):
    """Writes the run record of a language model that trains, with at most one fault."""
    random = np.random.default_rng(seed)
    run = InventedRun(Path(path))
    begin = time.time() - steps * 0.11 - 5 if begin is None else begin
    per_epoch = max(steps // 8, 1)
    step = np.arange(1, steps + 1)
    at = begin + step * 0.11
    run.describe(
        state={"killed": "running", "failed": "failed"}.get(fault, "finished"),
        host="trainer-1",
        pid=4242,
        started=begin,
        heartbeat=float(at[-1]),
        ended=float(at[-1]),
        model="language_model",
        backend="torch",
        device="CPU (x86_64)",
        parameters=1_630_000,
        epochs=8,
        steps_per_epoch=per_epoch,
        commit="5f0e1c2",
        generation=1,
        arguments={"learning_rate": rate, "batch_size": 16, "optimizer": "adamw", "seed": seed},
    )
    if fault == "failed":
        run.describe(failure="OutOfMemoryError: 2.4 GiB were asked for and 1.1 GiB were free.")
    speed = 260 * rate / 3e-3
    clean = 0.55 + 6.9 * np.exp(-step / speed) ** 0.7
    if fault == "plateau":
        clean = 6.9 + 0.3 * np.exp(-step / 40)
    if fault == "diverging":
        clean = clean + np.where(step > steps * 0.4, (step - steps * 0.4) / steps * 9, 0)
    loss = clean * np.exp(random.normal(0, 0.05, steps))
    if fault == "spike":
        where = int(steps * 0.6)
        loss[where : where + 12] += 5.5 * np.exp(-np.arange(12) / 3)
    if fault == "nan":
        loss[int(steps * 0.7) :] = np.nan
    run.log("step_loss", step, loss, at)
    epoch_start = (step - 1) // per_epoch * per_epoch
    total = np.concatenate([[0], np.cumsum(loss)])
    run.log("loss", step, (total[step] - total[epoch_start]) / (step - epoch_start), at)
    ends = step[per_epoch - 1 :: per_epoch]
    validation = clean[ends - 1] * 1.06 + random.normal(0, 0.01, len(ends))
    if fault == "overfitting":
        validation = validation + np.maximum(0, np.arange(len(ends)) - 2) ** 2 * 0.12
    run.log("val_loss", ends, validation, at[ends - 1])
    accuracy = 1 - 0.82 * (clean / clean[0]) ** 0.7
    run.log("accuracy", step, accuracy + random.normal(0, 0.012, steps), at)
    run.log("val_accuracy", ends, accuracy[ends - 1] - 0.015, at[ends - 1])
    warm = np.minimum(step / (steps * 0.06), 1)
    run.log("learning_rate", step, rate * warm * (0.55 + 0.45 * np.cos(np.pi * step / steps)), at)
    _log_pace(run, random, fault, step, at)
    norm = 0.6 + 2.2 * np.exp(-step / 150) + random.gamma(2, 0.12, steps)
    if fault == "diverging":
        norm = norm * np.where(step > steps * 0.4, 1 + (step - steps * 0.4) / 40, 1)
    run.log("gradient_norm", step, norm, at)
    _log_layers(run, random, fault, step, at)
    if documents:
        write_documents(run)
    return run


def _log_pace(run, random, fault, step, at):
    seconds = 0.11 * np.exp(random.normal(0, 0.05, len(step)))
    run.log("step_seconds", step, seconds, at)
    waits = seconds * (0.42 if fault == "waiting" else 0.012)
    run.log("data_wait_seconds", step, waits, at)
    run.log("samples_per_second", step[9::10], 16 / seconds[9::10], at[9::10])
    memory = 2.1e9 + 3e8 * (1 - np.exp(-step / 30))
    run.log("memory_bytes", step[9::10], memory[9::10], at[9::10])


def _log_layers(run, random, fault, step, at):
    columns = step[:: max(1, len(step) // 300)]
    depth = np.arange(len(LAYERS))[:, None]
    norms = (0.1 + 0.4 * np.exp(-depth / 5) + 1.2 * np.exp(-columns / 200)) * np.exp(
        random.normal(0, 0.15, (len(LAYERS), len(columns)))
    )
    ratios = 1.2e-3 * np.exp(random.normal(0, 0.2, norms.shape)) * np.ones_like(norms)
    if fault == "frozen":
        ratios[5:7] = 0
        norms[5:7] = 0
    when = at[columns - 1]
    run.log_vectors("layer_gradient_norms", LAYERS, columns, norms, when)
    run.log_vectors("layer_update_ratios", LAYERS, columns, ratios, when)
    load = np.exp(random.normal(0, 0.12, (len(EXPERTS), len(columns))))
    if fault == "starved":
        load[3] *= np.exp(-columns / 90)
    run.log_vectors("expert_load", EXPERTS, columns, load / load.sum(axis=0) * 2, when)


def write_documents(run):
    """Adds the model's graph, a profile, and the results of the searches."""
    graph = language_model()
    run.write("model_graph", graph)
    layers = {}

    def spend(node):
        inner = [child for child in node["children"] if child["kind"] == "layer"]
        flops = node["flops"] if not inner else 0
        layers[node["path"]] = [flops / 8e10 + 2e-4, flops / 5e10 + 2e-4]
        for child in inner:
            spend(child)

    spend(graph)
    totals = [sum(times[side] for times in layers.values()) for side in (0, 1)]
    parts = {"forward": totals[0], "backward": totals[1], "loss": 0.004, "optimizer": 0.013}
    parts |= {"rest": 0.003, "idle": 0.006, "data_wait": 0.0012}
    profile = {"steps": 5, "tool": "torch.profiler", "device": "CPU (x86_64)", "layers": layers}
    run.write("profile", {**profile, "parts": parts, "step_seconds": sum(parts.values())})
    memory = {"weights": 6.5e6, "gradients": 6.5e6, "optimizer": 13e6, "activations": 214e6}
    run.write("memory", {**memory, "batch_size": 16})
    rates = np.geomspace(1e-5, 1, 80)
    losses = 7 - 4.5 / (1 + np.exp(-3 * (np.log10(rates) + 2.8))) + 40 * np.maximum(rates - 0.08, 0)
    search = {"rates": rates.tolist(), "losses": np.minimum(losses, 11).tolist()}
    run.write("learning_rate_search", {**search, "raw_losses": [], "suggestion": 3e-3})
    sizes = {
        "batch_sizes": [8, 16, 32, 64, 128],
        "seconds_per_step": [0.07, 0.11, 0.19, 0.36, 0.71],
    }
    pace = [114.0, 145.0, 168.0, 178.0, 180.0]
    run.write(
        "batch_size_search",
        {**sizes, "samples_per_second": pace, "out_of_memory": [256], "suggestion": 64},
    )
    rows = [
        {"format": name, "batch_size": size, "milliseconds": ms * scale, "cpu_milliseconds": ms}
        for name, ms in (("keras", 9.1), ("savedmodel", 5.2), ("onnx", 2.9), ("openvino", 2.3))
        for size, scale in ((1, 1), (8, 4.6), (32, 16.5))
    ]
    run.write("latencies", {"rows": rows, "left_out": {"tensorrt": "no NVIDIA GPU"}})


def language_model(blocks=4):
    """Returns the graph of a small language model, every other block with experts."""
    shape = [16, 64, 128]

    def layer(name, cls, path, params=0, flops=0, out=None, children=(), edges=(), reason=None):
        kids = list(children)
        return {
            "kind": "layer",
            "name": name,
            "cls": cls,
            "path": path,
            "reason": reason,
            "params": params + sum(child["params"] for child in kids),
            "flops": flops + sum(child["flops"] for child in kids),
            "out": [[out or shape, "float32"]],
            "children": kids,
            "edges": [list(edge) for edge in edges],
        }

    def op(name, flops=0, out=None):
        return {
            "kind": "op",
            "name": name,
            "cls": name,
            "params": 0,
            "flops": flops,
            "out": [[out or shape, "float32"]],
            "children": [],
            "edges": [],
        }

    def dense(name, path, inputs, outputs):
        kids = [op("Matmul", 2 * 16 * 64 * inputs * outputs, [16, 64, outputs]), op("Add")]
        edges = [["in", 0], [0, 1], [1, "out"]]
        out = [16, 64, outputs]
        return layer(name, "Dense", path, inputs * outputs + outputs, 0, out, kids, edges)

    kids = [layer("embedding", "Embedding", "embedding", 256_000)]
    for n in range(blocks):
        path = f"block_{n}"
        attention = layer(
            *("attention", "MultiHeadAttention", f"{path}/attention"),
            children=[
                dense(name, f"{path}/attention/{name}", 128, 128)
                for name in ("query", "key", "value")
            ]
            + [
                op("DotProductAttention", 33_554_432),
                dense("output", f"{path}/attention/output", 128, 128),
            ],
            edges=[["in", 0], ["in", 1], ["in", 2], [0, 3], [1, 3], [2, 3], [3, 4], [4, "out"]],
        )
        inner = f"{path}/feedforward"
        feed = layer(
            *("feedforward", "Sequential", inner),
            children=[
                dense("up", f"{inner}/up", 128, 512),
                dense("down", f"{inner}/down", 512, 128),
            ],
            edges=[["in", 0], [0, 1], [1, "out"]],
        )
        if n % 2:
            reason = "its loop over experts depends on the values"
            feed = layer(
                "experts", "Experts", f"{path}/experts", 264_200, 537_900_000, reason=reason
            )
        kids.append(
            layer(
                *(path, "Block", path),
                children=[
                    layer("attention_norm", "LayerNormalization", f"{path}/attention_norm", 256),
                    attention,
                    op("Add"),
                    layer(
                        "feedforward_norm", "LayerNormalization", f"{path}/feedforward_norm", 256
                    ),
                    feed,
                    op("Add"),
                ],
                edges=[
                    *(["in", 0], [0, 1], ["in", 2], [1, 2], [2, 3], [3, 4], [2, 5], [4, 5]),
                    [5, "out"],
                ],
            )
        )
    kids.append(layer("final_norm", "LayerNormalization", "final_norm", 256))
    kids.append(dense("head", "head", 128, 2000))
    last = len(kids) - 1
    edges = [["in", 0], *([n, n + 1] for n in range(last)), [last, "out"]]
    return layer("language_model", "Functional", "", out=[16, 64, 2000], children=kids, edges=edges)


def main():
    """Writes a run of each kind to a folder."""
    folder = Path(sys.argv[1])
    for index, fault in enumerate(FAULTS):
        invent(
            folder / f"{fault}.sqlite", fault, seed=index, begin=time.time() - 4000 + 200 * index
        )


if __name__ == "__main__":
    main()
