"""The process of one export of a BERT, in the environment of who exports: prints what it took.

`benchmarks/export.py` starts it. The time of the imports and of loading the model is told apart
from that of the export, and so is the memory: "megabytes" is the most that the process held, less
what it held when the export began.

    python benchmarks/rivals/export_bert.py make FOLDER '{"num_layers": 4, ...}'
    python benchmarks/rivals/export_bert.py ours FOLDER '{"fused": true}'
"""

import contextlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

_STARTED = time.perf_counter()
LONGEST = 512
NORM_EPSILON = 1e-12


def make(folder: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Writes a KerasHub BERT with random weights, and these under the names of transformers."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    model = keras_hub.models.BertBackbone(max_sequence_length=LONGEST, **setting)
    generator = np.random.default_rng(0)
    for variable in model.weights:  # Zeros and ones of a fresh model would be left out of a graph.
        is_scale = variable.path.endswith("gamma")
        drawn = generator.normal(1.0 if is_scale else 0.0, 0.02, variable.shape)
        variable.assign(drawn.astype("float32"))
    model.save(folder / "model.keras")
    np.savez(folder / "weights.npz", **_name_as_transformers(model, setting["num_layers"]))
    (folder / "setting.json").write_text(json.dumps(setting), encoding="utf-8")
    sample = _draw_batch(setting["vocabulary_size"], 3, 21)
    outputs = model.predict(sample, verbose=0)
    np.savez(folder / "sample.npz", **sample, **outputs)
    return {"parameters": model.count_params()}


def _draw_batch(vocabulary_size: int, batch_size: int, length: int) -> dict[str, Any]:
    generator = np.random.default_rng(length)
    tokens = generator.integers(1, vocabulary_size, (batch_size, length)).astype("int32")
    mask = np.ones_like(tokens)
    mask[0, length - length // 3 :] = 0
    segments = (np.arange(length)[None] >= length // 2).astype("int32") * np.ones_like(tokens)
    return {"token_ids": tokens, "segment_ids": segments, "padding_mask": mask}


def _name_as_transformers(model: Any, num_layers: int) -> dict[str, Any]:
    def dense(kernel: Any, bias: Any, num_inputs: int) -> dict[str, Any]:
        """A layer's weights; transformers has the kernel the other way round."""
        return {"weight": np.array(kernel).reshape(num_inputs, -1).T, "bias": np.ravel(bias)}

    def norm(layer: Any) -> dict[str, Any]:
        return {"weight": np.array(layer.gamma), "bias": np.array(layer.beta)}

    hidden = model.hidden_dim
    parts: dict[str, dict[str, Any]] = {
        "embeddings.word_embeddings": {"weight": model.get_layer("token_embedding").embeddings},
        "embeddings.position_embeddings": {
            "weight": model.get_layer("position_embedding").position_embeddings
        },
        "embeddings.token_type_embeddings": {
            "weight": model.get_layer("segment_embedding").embeddings
        },
        "embeddings.LayerNorm": norm(model.get_layer("embeddings_layer_norm")),
        "pooler.dense": dense(*model.get_layer("pooled_dense").weights, hidden),
    }
    for index in range(num_layers):
        block, name = model.get_layer(f"transformer_layer_{index}"), f"encoder.layer.{index}"

        def part(kind: str, block: Any = block) -> Any:
            return getattr(block, f"_{kind}")  # No public way.

        attention = part("self_attention_layer")
        for ours, theirs in (("query", "query"), ("key", "key"), ("value", "value")):
            layer = getattr(attention, f"{ours}_dense")
            parts[f"{name}.attention.self.{theirs}"] = dense(*layer.weights, hidden)
        parts[f"{name}.attention.output.dense"] = dense(*attention.output_dense.weights, hidden)
        parts[f"{name}.attention.output.LayerNorm"] = norm(part("self_attention_layer_norm"))
        inner, outer = part("feedforward_intermediate_dense"), part("feedforward_output_dense")
        parts[f"{name}.intermediate.dense"] = dense(*inner.weights, hidden)
        parts[f"{name}.output.dense"] = dense(*outer.weights, model.intermediate_dim)
        parts[f"{name}.output.LayerNorm"] = norm(part("feedforward_layer_norm"))
    return {
        f"{part}.{kind}": np.array(array)
        for part, arrays in parts.items()
        for kind, array in arrays.items()
    }


def _export(folder: Path, options: dict[str, Any]) -> tuple[Callable[[Path], Any], str]:
    from keras_deepseek.deploy import Exporter
    from keras_deepseek.deploy.routes.child_process import close_all

    model = _load_keras_model(folder)
    format_name = options.pop("format", "onnx")

    def export(out: Path) -> Any:
        with _clocked() as clock:
            report = Exporter(model, format_name, verbose=False, **options).export(out / "bundle")
        close_all()  # What a child process took counts when it has ended.
        return {"report": str(report), "verification_seconds": sum(clock)}

    return export, "bundle/model.onnx" if format_name == "onnx" else "bundle"


@contextlib.contextmanager
def _clocked() -> Iterator[list[float]]:
    """Collects the seconds that verification takes: to run the model, the artifact, and compare."""
    from keras_deepseek.deploy import make_artifact
    from keras_deepseek.deploy.formats.onnx import OnnxFormat
    from keras_deepseek.deploy.formats.saved_model import SavedModelFormat

    spent: list[float] = []

    def clock(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent.append(time.perf_counter() - start)

        return run

    functions = [(OnnxFormat, "run"), (SavedModelFormat, "run")]
    functions += [(make_artifact, "compute_expected"), (make_artifact, "verify_resampling_ties")]
    with contextlib.ExitStack() as stack:
        for owner, name in functions:
            stack.enter_context(mock.patch.object(owner, name, clock(getattr(owner, name))))
        yield spent


def _export_by_keras(folder: Path, options: dict[str, Any]) -> tuple[Callable[[Path], Any], str]:
    model = _load_keras_model(folder)
    format_name = options["format"]
    name = "model.onnx" if format_name == "onnx" else "saved_model"

    def export(out: Path) -> None:
        model(_draw_batch(model.vocabulary_size, 1, 2))  # It refuses a model that was never called.
        model.export(str(out / name), format=format_name, verbose=False)

    return export, name


def _load_keras_model(folder: Path) -> Any:
    import keras
    import keras_hub  # noqa: F401 - it registers the classes of the file.

    return keras.models.load_model(folder / "model.keras")


def _export_by_optimum(folder: Path, options: dict[str, Any]) -> tuple[Callable[[Path], Any], str]:
    from optimum.exporters.onnx import onnx_export_from_model

    model = _make_transformer(folder)

    def export(out: Path) -> None:
        onnx_export_from_model(model, out, task="feature-extraction", **options)

    return export, "model.onnx"


def _make_transformer(folder: Path) -> Any:
    """Returns the BERT of transformers with the weights of KerasHub's, which computes the same."""
    import torch
    from transformers import BertConfig, BertModel

    setting = json.loads((folder / "setting.json").read_text(encoding="utf-8"))
    config = BertConfig(
        vocab_size=setting["vocabulary_size"],
        hidden_size=setting["hidden_dim"],
        num_hidden_layers=setting["num_layers"],
        num_attention_heads=setting["num_heads"],
        intermediate_size=setting["intermediate_dim"],
        hidden_act="gelu_new",  # By tanh, as KerasHub has it.
        max_position_embeddings=LONGEST,
        layer_norm_eps=NORM_EPSILON,
    )
    model = BertModel(config).eval()
    with np.load(folder / "weights.npz") as arrays:
        state = {name: torch.tensor(arrays[name]) for name in arrays.files}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any(not name.endswith("_ids") for name in missing):
        raise AssertionError(f"Missing {missing}, unexpected {unexpected}.")
    return model


EXPORTS = {"ours": _export, "keras": _export_by_keras, "optimum": _export_by_optimum}


def export(kind: str, folder: Path, options: dict[str, Any], out: Path) -> dict[str, Any]:
    """Makes one export, and returns what it took."""
    run, entry = EXPORTS[kind](folder, options)
    ready = time.perf_counter()
    start_seconds, start_megabytes = _cpu_seconds(), _held()
    facts = run(out) or {}
    return {
        "seconds": time.perf_counter() - ready,
        "cpu_seconds": _cpu_seconds() - start_seconds,
        "import_seconds": ready - _STARTED,
        "megabytes": _peak() - start_megabytes,
        "peak_megabytes": _peak(),
        "artifact": str(out / entry),
        **facts,
    }


def _cpu_seconds() -> float:
    """Returns the processor time of this process and of those that it started and that ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _peak() -> float:
    """Returns the most megabytes that this process or one that it started held."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in both) / 1024


def _held() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


INPUTS = {
    "input_ids": "token_ids",
    "token_type_ids": "segment_ids",
    "attention_mask": "padding_mask",
}
"""What transformers calls the inputs, and what KerasHub does."""


def compare(folder: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Runs artifacts in turns, each in one thread and with the same options.

    Returns by artifact its milliseconds by batch and length: of each round the processor time, and
    that of the clock; and how far its outputs are from KerasHub's where the mask is not 0.
    """
    sessions = {name: _open(path) for name, path in setting["artifacts"].items()}
    with np.load(folder / "sample.npz") as arrays:
        sample = dict(arrays)
    differences = {name: _find_difference(session, sample) for name, session in sessions.items()}
    results: dict[str, Any] = {name: {} for name in sessions}
    for batch_size, length in setting["shapes"]:
        batch = _draw_batch(setting["vocabulary_size"], batch_size, length)
        feeds = {name: _feed(session, batch) for name, session in sessions.items()}
        calls = max(1, round(setting["tokens_a_sample"] / (batch_size * length)))
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
        for index in range(setting["rounds"] + 1):
            for name, session in sessions.items():
                times = _time(session, feeds[name], calls)
                if index:  # The first warms up.
                    spent[name].append(times)
        for name, times in spent.items():
            cpu, wall = (statistics.median(column) for column in zip(*times, strict=True))
            samples = [pair[0] for pair in times]
            numbers = {"cpu_ms": cpu, "ms": wall, "samples": samples}
            results[name][f"{batch_size}x{length}"] = numbers
    return {"latency": results, "differences": differences}


def _open(path: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _feed(session: Any, batch: dict[str, Any]) -> dict[str, Any]:
    kinds = {"tensor(int32)": "int32", "tensor(int64)": "int64"}
    return {
        value.name: batch[INPUTS.get(value.name, value.name)].astype(kinds[value.type])
        for value in session.get_inputs()
    }


def _time(session: Any, feed: dict[str, Any], calls: int) -> tuple[float, float]:
    """Returns the milliseconds of a call, by the processor and by the clock."""
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        session.run(None, feed)
    times = time.process_time() - cpu, time.perf_counter() - start
    return times[0] / calls * 1e3, times[1] / calls * 1e3


def _find_difference(session: Any, sample: dict[str, Any]) -> float:
    """Returns how far an artifact is from KerasHub's model at the most, on tokens that count."""
    outputs = session.run(None, _feed(session, sample))
    by_rank = {array.ndim: array for array in outputs}
    rows = sample["padding_mask"].astype(bool)
    pooled = by_rank.get(2)
    differences = [np.abs(by_rank[3] - sample["sequence_output"])[rows].max()]
    if pooled is not None:
        differences.append(np.abs(pooled - sample["pooled_output"]).max())
    return float(max(differences))


def main() -> int:
    kind, folder, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    if kind == "make":
        result = make(folder, options)
    elif kind == "compare":
        result = compare(folder, options)
    else:
        out = Path(sys.argv[4])
        out.mkdir(parents=True, exist_ok=True)
        result = export(kind, folder, options, out)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
