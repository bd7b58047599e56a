"""The process of one export of a model, in the environment of who exports: prints what it took.

`benchmarks/export.py` starts it. The time of the imports and of loading the model is told apart
from that of the export, and so is the memory: "megabytes" is the most that the process held, less
what it held when the first export began. "warm_cpu_seconds" are the median of the exports after the
first.

    python benchmarks/rivals/export_models.py make FOLDER '{"model": "bert", "num_layers": 4, ...}'
    python benchmarks/rivals/export_models.py ours FOLDER '{"fused": true}'
"""

import contextlib
import json
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

_STARTED = time.perf_counter()
_NUM_EXPORTS = 5
LONGEST = 512
IMAGE_SIZE = 224
NORM_EPSILON = 1e-12


def make(folder: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Writes a Keras model with random weights; a BERT's also under the names of transformers."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    sizes = {name: value for name, value in setting.items() if name != "model"}
    if setting["model"] == "bert":
        model = keras_hub.models.BertBackbone(max_sequence_length=LONGEST, **sizes)
    elif setting["model"] == "llama":
        sizes |= dict.fromkeys(("num_query_heads", "num_key_value_heads"), sizes["num_heads"])
        model = keras_hub.models.Llama3Backbone(**{k: sizes[k] for k in sizes if k != "num_heads"})
    else:
        model = keras.applications.ResNet50(weights=None, include_top=False, pooling="avg")
    generator = np.random.default_rng(0)
    for variable in model.weights:  # Zeros and ones of a fresh model would be left out of a graph.
        is_scale = variable.path.endswith(("gamma", "variance"))
        drawn = generator.normal(1.0 if is_scale else 0.0, 0.02, variable.shape)
        variable.assign(drawn.astype("float32"))
    model.save(folder / "model.keras")
    if setting["model"] == "bert":
        np.savez(folder / "weights.npz", **_name_as_transformers(model, setting["num_layers"]))
    (folder / "setting.json").write_text(json.dumps(setting), encoding="utf-8")
    sample = _draw_batch(setting, 3, LONGEST if setting["model"] == "resnet" else 21)
    outputs = model.predict(sample if len(sample) > 1 else next(iter(sample.values())), verbose=0)
    if not isinstance(outputs, dict):
        outputs = {"output": outputs}
    np.savez(folder / "sample.npz", **sample)
    np.savez(folder / "outputs.npz", **outputs)
    return {"parameters": model.count_params()}


def _draw_batch(setting: dict[str, Any], batch_size: int, length: int) -> dict[str, Any]:
    generator = np.random.default_rng(length)
    if setting["model"] == "resnet":
        image = generator.normal(size=(batch_size, IMAGE_SIZE, IMAGE_SIZE, 3))
        return {"image": image.astype("float32")}
    tokens = generator.integers(1, setting["vocabulary_size"], (batch_size, length)).astype("int32")
    mask = np.ones_like(tokens)
    mask[0, length - length // 3 :] = 0
    if setting["model"] == "llama":
        return {"token_ids": tokens, "padding_mask": mask}
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
    with np.load(folder / "sample.npz") as arrays:
        sample = dict(arrays)

    def export(out: Path) -> None:
        # It refuses a model that was never called.
        model(sample if len(sample) > 1 else next(iter(sample.values())))
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
    """Returns the same model of transformers: a BERT with the weights of KerasHub's."""
    import torch
    import transformers

    setting = json.loads((folder / "setting.json").read_text(encoding="utf-8"))
    if setting["model"] == "resnet":
        return transformers.ResNetModel(transformers.ResNetConfig()).eval()
    sizes = {
        "vocab_size": setting["vocabulary_size"],
        "hidden_size": setting["hidden_dim"],
        "num_hidden_layers": setting["num_layers"],
        "num_attention_heads": setting["num_heads"],
        "intermediate_size": setting["intermediate_dim"],
    }
    if setting["model"] == "llama":
        config = transformers.LlamaConfig(use_cache=False, **sizes)
        return transformers.LlamaModel(config).eval()
    config = transformers.BertConfig(
        hidden_act="gelu_new",  # By tanh, as KerasHub has it.
        max_position_embeddings=LONGEST,
        layer_norm_eps=NORM_EPSILON,
        **sizes,
    )
    model = transformers.BertModel(config).eval()
    with np.load(folder / "weights.npz") as arrays:
        state = {name: torch.tensor(arrays[name]) for name in arrays.files}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any(not name.endswith("_ids") for name in missing):
        raise AssertionError(f"Missing {missing}, unexpected {unexpected}.")
    return model


EXPORTS = {"ours": _export, "keras": _export_by_keras, "optimum": _export_by_optimum}


def export(kind: str, folder: Path, options: dict[str, Any], out: Path) -> dict[str, Any]:
    """Makes an export several times; returns what the first took, and the median of the others."""
    run, entry = EXPORTS[kind](folder, options)
    ready = time.perf_counter()
    _forget_peak()
    start_seconds, start_megabytes = _cpu_seconds(), _read_megabytes("VmRSS:")
    facts = run(out) or {}
    seconds, cpu_seconds, peak = time.perf_counter() - ready, _cpu_seconds(), _peak()
    warm_seconds = []
    for _ in range(_NUM_EXPORTS - 1):
        shutil.rmtree(out)
        out.mkdir()
        before = _cpu_seconds()
        run(out)
        warm_seconds.append(_cpu_seconds() - before)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds - start_seconds,
        "warm_cpu_seconds": statistics.median(warm_seconds),
        "import_seconds": ready - _STARTED,
        "megabytes": peak - start_megabytes,
        "peak_megabytes": peak,
        "artifact": str(out / entry),
        **facts,
    }


def _cpu_seconds() -> float:
    """Returns the processor time of this process and of those that it started and that ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _peak() -> float:
    """Returns the most megabytes that this process, since `_forget_peak`, or a child held."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return max(_read_megabytes("VmHWM:"), children)


def _forget_peak() -> None:
    """Makes Linux measure the peak anew: loading the model may have taken more than the export."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _read_megabytes(name: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


INPUTS = {
    "input_ids": "token_ids",
    "token_type_ids": "segment_ids",
    "attention_mask": "padding_mask",
}
"""What transformers calls the inputs, and what KerasHub does."""
KINDS = {"tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(float)": "float32"}


def compare(folder: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Runs artifacts in turns, each in one thread and with the same options.

    Returns by artifact its milliseconds by batch and length: of each round the processor time, and
    that of the clock; and how far its outputs are from KerasHub's where the mask is not 0.
    """
    sessions = {name: _open(path) for name, path in setting["artifacts"].items()}
    with np.load(folder / "sample.npz") as arrays, np.load(folder / "outputs.npz") as outputs:
        sample, expected = dict(arrays), dict(outputs)
    differences = {
        name: _find_difference(session, sample, expected)
        for name, session in sessions.items()
        if setting["model"] == "bert" or "Optimum" not in name  # Its weights are others.
    }
    results: dict[str, Any] = {name: {} for name in sessions}
    for batch_size, length in setting["shapes"]:
        batch = _draw_batch(setting, batch_size, length)
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
    feed = {}
    for value in session.get_inputs():
        if value.name == "position_ids":
            array = np.arange(batch["token_ids"].shape[1])[None] + 0 * batch["token_ids"]
        elif "image" in batch:
            array = batch["image"]
            if value.name == "pixel_values":  # Channels first.
                array = array.transpose(0, 3, 1, 2)
        else:
            array = batch[INPUTS.get(value.name, value.name)]
        feed[value.name] = np.ascontiguousarray(array.astype(KINDS[value.type]))
    return feed


def _time(session: Any, feed: dict[str, Any], calls: int) -> tuple[float, float]:
    """Returns the milliseconds of a call, by the processor and by the clock."""
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        session.run(None, feed)
    times = time.process_time() - cpu, time.perf_counter() - start
    return times[0] / calls * 1e3, times[1] / calls * 1e3


def _find_difference(session: Any, sample: dict[str, Any], expected: dict[str, Any]) -> float:
    """Returns how far an artifact is from the Keras model at the most, on tokens that count."""
    by_rank = {array.ndim: array for array in session.run(None, _feed(session, sample))}
    mask = sample.get("padding_mask")
    differences = []
    for array in expected.values():
        if array.ndim not in by_rank:  # Optimum's BERT has no pooled output.
            continue
        distances = np.abs(by_rank[array.ndim] - array)
        is_by_token = mask is not None and array.shape[:2] == mask.shape
        differences.append(distances[mask.astype(bool)].max() if is_by_token else distances.max())
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
