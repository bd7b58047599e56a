"""Measurement of inference latency per batch in several formats on this machine."""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.artifacts.run_record import RunRecord
from keras_deepseek.artifacts.signature import Batch, InferenceFunction
from keras_deepseek.artifacts.staging_folder import temporary_folder
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.random_batch import batch_shapes, draw_batch
from keras_deepseek.checks import check_file_path, check_integer, check_number
from keras_deepseek.deploy.exporter import Exporter
from keras_deepseek.deploy.failure_reason import failure_reason
from keras_deepseek.deploy.formats.registry import known_formats
from keras_deepseek.deploy.stage_display import StageDisplay, check_verbose
from keras_deepseek.errors import InvalidInputError, KerasDeepSeekError, unknown_name_message

_NUM_WARM_UPS = 3


@dataclass(frozen=True)
class Latency:
    """The latency of a batch in one format.

    Args:
        format: string. `"keras"` is the model itself, compiled by the running backend.
        batch_size: integer, in rows.
        milliseconds: float. The median of the wall-clock times.
        cpu_milliseconds: float. The median of the CPU times, summed over all cores.

    Example:

    >>> Latency("onnx", batch_size=8, milliseconds=1.5, cpu_milliseconds=2.5).format
    'onnx'
    """

    format: str
    batch_size: int
    milliseconds: float
    cpu_milliseconds: float


@dataclass(frozen=True)
class LatencyTable:
    """The latencies of all formats, which `print` shows as a table.

    Args:
        rows: tuple of `Latency`.
        left_out: dict. For each format that was not measured the reason.

    Example:

    >>> print(LatencyTable((), {"tensorrt": "no GPU is visible"}).left_out["tensorrt"])
    no GPU is visible
    """

    rows: tuple[Latency, ...]
    left_out: dict[str, str]

    def __str__(self) -> str:
        sizes = sorted({row.batch_size for row in self.rows})
        head = "".join(f"{f'batch of {size}':>26}" for size in sizes)
        lines = [f"{'ms (CPU ms)':<14}{head}"]
        for name in dict.fromkeys(row.format for row in self.rows):
            cells = [
                f"{row.milliseconds:.2f} ({row.cpu_milliseconds:.2f})"
                for size in sizes
                for row in self.rows
                if (row.format, row.batch_size) == (name, size)
            ]
            lines.append(f"{name:<14}" + "".join(f"{cell:>26}" for cell in cells))
        lines += [f"{name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines)


def compare_latencies(
    model: keras.Model,
    formats: Sequence[str] | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    length: int = 64,
    seconds: float = 1.0,
    calibration: Any = None,
    custom_objects_from: Sequence[str] = (),
    run_record: str | os.PathLike[str] | None = None,
    verbose: int | str = "auto",
) -> LatencyTable:
    """Exports a model in each format, and compares the latencies with that of the model itself.

    Use it to choose a format for a model and a machine. The formats take turns, batch by batch, so
    that other load on the machine affects all of them. Each uses its runtime's default number of
    threads.

    Args:
        model: `keras.Model`, built.
        formats: list of strings. Defaults to `None`: all that are known.
        batch_sizes: integers, in rows. Defaults to `(1, 8, 32)`.
        length: integer. The size of each free axis. Defaults to `64`.
        seconds: float. The time of measurement for each format and batch size. Defaults to `1.0`.
        calibration: inputs as `Exporter` takes them: ONNX in int8 is compared as well. Defaults to
            `None`.
        custom_objects_from: as in `Exporter`. Defaults to `()`.
        run_record: string or path. A run record that keeps the result as its document
            `"latencies"`. Defaults to `None`.
        verbose: as in `Exporter`: shows each format as its export begins. Defaults to `"auto"`.

    Returns:
        A `LatencyTable`. A format that can't be exported or run is left out, with the reason.

    Raises:
        InvalidInputError: The model is not built, a format is unknown, or an argument is not a
            positive number.

    Example:

    >>> import keras
    >>> from keras_deepseek.deploy import compare_latencies
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> table = compare_latencies(model, formats=[], batch_sizes=[2], seconds=0.01)
    >>> [(row.format, row.batch_size) for row in table.rows]
    [('keras', 2)]
    """
    _check(formats, batch_sizes, length, seconds)
    check_verbose(verbose)
    if run_record is not None:
        check_file_path("run_record", run_record)
    named = NamedModel(model)
    run_model = backend.current().inference.compile_inference(named)
    shared: dict[str, Any] = {"custom_objects_from": custom_objects_from}
    exports = [(name, shared) for name in (known_formats() if formats is None else formats)]
    if calibration is not None:
        exports.append(("onnx", {**shared, "precision": "int8", "calibration": calibration}))
    with temporary_folder("keras_deepseek_latencies") as work:
        with StageDisplay(verbose) as say:
            exported, left_out = _export_all(model, exports, work, say)
        batches = _batches(named, batch_sizes, length)
        rows = list(_time_all({"keras": run_model, **exported}, batches, seconds, left_out))
    table = LatencyTable(tuple(rows), left_out)
    if run_record is not None:
        with RunRecord(run_record) as record:
            record.write_document("latencies", asdict(table))
    return table


def _check(
    formats: Sequence[str] | None, batch_sizes: Sequence[int], length: int, seconds: float
) -> None:
    for argument, value in (("formats", formats or []), ("batch_sizes", batch_sizes)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise InvalidInputError(f"`{argument}` must be a list; received {value!r}.")
    if not batch_sizes:
        raise InvalidInputError("`batch_sizes` is empty; expected at least one, as in [1, 8].")
    for size in batch_sizes:
        check_integer("batch_sizes", size)
    check_integer("length", length)
    check_number("seconds", seconds, above=0)
    for name in formats or ():
        if name not in known_formats():
            raise InvalidInputError(unknown_name_message("format", name, known_formats()))


def _export_all(
    model: keras.Model,
    exports: Iterable[tuple[str, dict[str, Any]]],
    work: Path,
    say: Callable[[str], None],
) -> tuple[dict[str, InferenceFunction], dict[str, str]]:
    infer: dict[str, InferenceFunction] = {}
    left_out: dict[str, str] = {}
    for name, arguments in exports:
        label = f"{name} {arguments.get('precision', '')}".rstrip()
        say(f"exporting and verifying {label}")
        try:  # The exporter's own report would name the temporary folder.
            exporter = Exporter(model, name, verbose=0, **arguments)
            exporter.export(work / label)
            infer[label] = exporter.load(work / label)
        except KerasDeepSeekError as error:
            left_out[label] = str(error)
    return infer, left_out


def _batches(named: NamedModel, batch_sizes: Iterable[int], length: int) -> dict[int, Batch]:
    batches = {}
    for batch_size in batch_sizes:
        shapes = batch_shapes(named.signature, batch_size, itertools.repeat(length))
        # A fixed batch size is replaced, too: the format then fails, and is left out.
        shapes = {name: (batch_size, *shape[1:]) for name, shape in shapes.items()}
        batches[batch_size] = draw_batch(named.model, named.signature, shapes)
    return batches


def _time_all(
    infer: dict[str, InferenceFunction],
    batches: dict[int, Batch],
    seconds: float,
    left_out: dict[str, str],
) -> Iterable[Latency]:
    """Measures and yields latencies; a format that fails on a batch is added to `left_out`."""
    for batch_size, batch in batches.items():
        running = {name: run for name, run in infer.items() if name not in left_out}
        for name, run in list(running.items()):
            try:
                for _ in range(_NUM_WARM_UPS):
                    run(batch)
            except Exception as error:  # noqa: BLE001 - of any runtime
                left_out[name] = f"fails on a batch of {batch_size}: {failure_reason(error)}"
                del running[name]
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
        until = time.perf_counter() + seconds * len(running)
        for name in itertools.cycle(running):
            began, began_cpu = time.perf_counter(), time.process_time()
            running[name](batch)
            ended, ended_cpu = time.perf_counter(), time.process_time()
            times[name].append((1e3 * (ended - began), 1e3 * (ended_cpu - began_cpu)))
            if ended > until and all(times.values()):
                break
        for name, measured in times.items():
            clock, cpu = (statistics.median(column) for column in zip(*measured, strict=True))
            yield Latency(name, batch_size, clock, cpu)
