"""The options of one model: each with its check, its documentation and its command-line flags."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.inference.arguments import check_batch_size, check_seconds
from keras_deepseek.inference.options import (
    COUNT,
    SECONDS,
    SWITCH,
    Flag,
    check_options,
    option,
    read_number,
    read_pairs,
    refuse_unknown_options,
)
from keras_deepseek.inference.process_limits import find_cpu_limit

if TYPE_CHECKING:
    from keras_deepseek.inference.batching.padding import Padding

BatchSize = int | Literal["dynamic"]

MAX_ROWS = 32
"""The most rows of a batch by default."""

MAX_TEXT_ROWS = 16
"""The most answers that a language model writes at the same time, by default."""

WEIGHTS = ("bfloat16", "int8", "int4")

MAX_LENGTH = 4096
"""The most tokens of a prompt and its answer by default."""


class ModelKeywords(TypedDict, total=False):
    """The keywords of `ServingEngine`, fields of `ModelOptions`."""

    batch_size: BatchSize
    max_batch_size: int | None
    max_wait: float | None
    max_queue_rows: int | None
    target_latency: float | None
    replicas: int
    isolated: bool
    batch_timeout: float
    padding: "Padding | None"
    warm_up: bool
    cache_entries: int
    custom_objects_from: Sequence[str | os.PathLike[str]]
    threads: int | None
    max_length: int | None
    batch_invariant: bool
    accept_changed_signature: bool
    weights: str | None


def _read_batch_size(arguments: argparse.Namespace) -> Any:
    try:
        return arguments.batch_size and int(arguments.batch_size)
    except ValueError:
        return arguments.batch_size  # A word, which is checked below.


def _read_threads(arguments: argparse.Namespace) -> int | None:
    """Returns the threads of a replica, or `None` (the runtime chooses) without a limit of CPUs."""
    if arguments.threads is not None:
        return check_integer("--threads", arguments.threads)
    limit = find_cpu_limit()
    return None if limit >= (os.cpu_count() or 1) else max(1, limit // (arguments.replicas or 1))


def _check_padding(_name: str, padding: Any) -> None:
    from keras_deepseek.inference.batching.padding import Padding

    if not isinstance(padding, Padding):
        raise InvalidInputError(
            "`padding` must be a `Padding`, as in Padding(lengths=(16, 32), values="
            f"{{'tokens': 0}}, masks='by_value'), or None; received {padding!r}."
        )


def _read_padding(arguments: argparse.Namespace) -> "Padding | None":
    from keras_deepseek.inference.batching.padding import Padding

    values, masks = arguments.pad_value, arguments.pad_mask
    if arguments.pad_lengths is None:
        if values or masks or arguments.pad_output:
            raise InvalidInputError(
                "Received --pad-value, --pad-mask or --pad-output without --pad-lengths. Add "
                "--pad-lengths, as in --pad-lengths 16,32,64."
            )
        return None
    if not masks:
        raise InvalidInputError(
            "Received --pad-lengths without --pad-mask. Add --pad-mask MASK=INPUT for an input "
            "that is a mask, or --pad-mask by_value if the model recognizes padding by its value."
        )
    return Padding(
        masks="by_value" if masks == ["by_value"] else read_pairs("--pad-mask", masks),
        lengths=[read_number("--pad-lengths", text) for text in arguments.pad_lengths.split(",")],
        values={
            name: read_number("--pad-value", text)
            for name, text in read_pairs("--pad-value", values).items()
        },
        outputs=read_pairs("--pad-output", arguments.pad_output),
    )


def _check_weights(name: str, weights: Any) -> None:
    if weights not in WEIGHTS:
        raise InvalidInputError(unknown_name_message(f"`{name}`", weights, WEIGHTS))


_PAIRS: dict[str, Any] = {"action": "append", "default": []}


@refuse_unknown_options
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options of one model, for `ServingEngine`, `ServingEngine.load` and `follow`.

    Args:
        batch_size: `"dynamic"`, or an integer up to `max_batch_size`. Defaults to `"dynamic"`.
        max_batch_size: integer. The rows of the largest batch. A request with more rows runs in
            several batches. Of a language model: the answers that are written at the same time;
            steps for one answer, for four and so on are compiled at the start. Defaults to `None`:
            32, and 16 of a language model.
        max_wait: float. With a fixed `batch_size` alone: seconds after the arrival of its oldest
            request when a batch runs that is not full. Defaults to `None`: 0.005 seconds.
        max_queue_rows: integer. The rows that may wait before requests are refused, and the most
            rows of one request. Defaults to `None`: 1,024, and more while they are expected to be
            answered within 5 seconds and take at most 256 MiB with their answers, 1 MiB for one
            request. Of a language model: the answers that may wait, 512 by default.
        target_latency: float. Seconds within which requests should be answered. Batches are kept
            small enough for that, and requests that would take longer are refused. Defaults to
            `None`: requests without a timeout are refused only if more come than the model can
            answer. The queue has then not been empty for the time of four full batches, and at
            least 0.2 s, and the request would wait longer than that.
        replicas: integer. The number of threads that run the model, each with its own batch. A path
            is loaded once for each replica; a live model or an `Executor` is called from all
            threads. Defaults to `1`.
        isolated: boolean. If `True`, each replica runs in its own process. A process that crashes
            or hangs is restarted, and its batch is retried one request at a time. `model` must be a
            path, or `"package.module:function"`, which returns an `Executor`. Defaults to `False`.
        batch_timeout: float. Seconds after which a batch of an isolated replica counts as hung. It
            may block others for that time (`max_concurrent_batches`). Defaults to `60.0`.
        padding: `Padding`. How to pad requests of different lengths, so that they can share
            batches. Defaults to `None`: they don't share batches.
        warm_up: boolean. If `True`, starting runs the model for every batch size, and checks that
            it does not mix rows. Defaults to `True`.
        cache_entries: integer. The number of answers that are cached for each version, for models
            that always give the same answer for the same inputs. Defaults to `0`: no cache.
        custom_objects_from: sequence of module names or `.py` files that define the custom classes
            of a `.keras` file. Defaults to `()`.
        threads: integer. The number of CPU threads that compute a batch of one replica. The threads
            of TensorFlow, PyTorch and JAX belong to the process: set them for its first model, or
            use `isolated`. Defaults to `None`: as many as the runtime chooses.
        max_length: integer. Of a language model alone: the most tokens of a prompt and its answer
            together. The memory of the cache and the time of the start grow with it. Defaults to
            `None`: as many as the model takes, and at most 4,096. A model of KerasHub then has the
            `sequence_length` of its preprocessor.
        batch_invariant: boolean. Of a language model alone: if `True`, the bits of an answer don't
            depend on what else the model answers. All steps then have the largest size, so that
            few requests take longer. Defaults to `False`.
        accept_changed_signature: boolean. If `True`, a version that appears in a followed folder is
            served even if requests that were right for the last version are wrong for it: an input
            has another name, shape or dtype. If `False`, it waits, and the log says what has
            changed. Defaults to `False`.
        weights: `"bfloat16"`, `"int8"` or `"int4"`. Of a folder of a language model alone: the kind
            of numbers in which its weights are kept. Layers are cast or quantized one after the
            other while they are read. Defaults to `None`: the global dtype policy, float32.

    Raises:
        InvalidInputError: An option has a wrong value.

    Example:

    >>> import keras
    >>> from keras_deepseek.inference import ServingEngine
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> with ServingEngine(model, max_batch_size=1) as engine:
    ...     engine.load(model, name="small", options=ModelOptions(max_batch_size=2)).number
    1
    """

    batch_size: BatchSize = field(
        default="dynamic",
        metadata=option(
            "batching",
            "rows of every batch; or dynamic: batches grow with the load (default: {default})",
            kind="tensors",
            read=_read_batch_size,
            metavar="N",
        ),
    )
    max_batch_size: int | None = field(
        default=None,
        metadata=option(
            "batching",
            "rows of the largest batch; of a language model, answers that are written at the same "
            f"time (default: {MAX_ROWS}, and {MAX_TEXT_ROWS} of a language model)",
            **COUNT,
        ),
    )
    max_wait: float | None = field(
        default=None,
        metadata=option(
            "batching",
            "with a number as --batch-size: a batch that is not full runs after this time "
            "(default: 0.005)",
            kind="tensors",
            **SECONDS | {"check": partial(check_seconds, or_zero=True)},
        ),
    )
    target_latency: float | None = field(
        default=None,
        metadata=option(
            "batching",
            "answer within this time, and refuse requests that would take longer",
            kind="tensors",
            **SECONDS,
        ),
    )
    max_queue_rows: int | None = field(
        default=None,
        metadata=option(
            "batching",
            "rows that may wait before requests are refused (default: 1024, and more while they "
            "can be answered within 5 seconds and take at most 256 MiB)",
            **COUNT,
        ),
    )
    replicas: int = field(
        default=1,
        metadata=option(
            "model",
            "threads or processes that run the model, each with a copy (default: {default})",
            kind="tensors",
            **COUNT,
        ),
    )
    threads: int | None = field(
        default=None,
        metadata=option(
            "model",
            "CPU threads that compute a batch of one replica (default: the CPUs of this container, "
            "divided among the replicas; without a limit, the runtime's choice)",
            **COUNT | {"read": _read_threads},
        ),
    )
    isolated: bool = field(
        default=False,
        metadata=option(
            "model",
            "run each replica in its own process, and restart a process that crashes or hangs",
            kind="tensors",
            **SWITCH,
        ),
    )
    batch_timeout: float = field(
        default=60.0,
        metadata=option(
            "model",
            "with --isolated: a batch that takes longer counts as hung (default: {default})",
            kind="tensors",
            **SECONDS,
        ),
    )
    warm_up: bool = field(
        default=True,
        metadata=option(
            "model",
            "do not run every batch size at the start; first requests may wait for compilation",
            flag="--no-warm-up",
            read=lambda arguments: not arguments.no_warm_up,
            **SWITCH,
        ),
    )
    custom_objects_from: Sequence[str | os.PathLike[str]] = field(
        default=(),
        metadata=option(
            kind="tensors", read=lambda arguments: tuple(arguments.custom_objects_from)
        ),
    )
    padding: "Padding | None" = field(
        default=None,
        metadata=option(
            "padding",
            "pad a free axis to the next of these lengths",
            Flag(
                "--pad-value",
                "padding",
                "the number to pad an input with; one for each input with a free axis",
                **_PAIRS | {"metavar": "INPUT=NUMBER"},
            ),
            Flag(
                "--pad-mask",
                "padding",
                "an input that the server makes: true where the other input has data; or "
                "by_value, if the model recognizes padding by its value",
                **_PAIRS | {"metavar": "MASK=INPUT"},
            ),
            Flag(
                "--pad-output",
                "padding",
                "the input whose length an output has, if several inputs are padded",
                **_PAIRS | {"metavar": "OUTPUT=INPUT"},
            ),
            flag="--pad-lengths",
            kind="tensors",
            check=_check_padding,
            read=_read_padding,
            metavar="N,N,...",
        ),
    )
    cache_entries: int = field(
        default=0,
        metadata=option(
            "operation",
            "answers to cache for inputs that come again (default: {default})",
            kind="tensors",
            **COUNT | {"check": partial(check_integer, minimum=0)},
        ),
    )
    max_length: int | None = field(
        default=None,
        metadata=option(
            "language models",
            "tokens that a prompt and its answer may have together (default: as many as the model "
            f"takes, at most {MAX_LENGTH})",
            kind="text",
            **COUNT,
        ),
    )
    batch_invariant: bool = field(
        default=False,
        metadata=option(
            "language models",
            "compute an answer to the bit as if the model answered nothing else; few requests "
            "then take longer",
            kind="text",
            **SWITCH,
        ),
    )
    accept_changed_signature: bool = field(
        default=False,
        metadata=option(
            "model",
            "switch to a new version of a folder even if its inputs or outputs have changed, so "
            "that requests of clients become wrong",
            **SWITCH,
        ),
    )
    weights: str | None = field(
        default=None,
        metadata=option(
            "language models",
            "keep the weights in these numbers, cast or quantized while they are loaded (default: "
            "float32)",
            kind="text",
            check=_check_weights,
            choices=WEIGHTS,
        ),
    )

    def __post_init__(self) -> None:
        from keras_deepseek.artifacts.export_arguments import check_custom_sources

        check_options(self)
        batch_size = check_batch_size(self.batch_size, self.max_batch_size or MAX_ROWS)
        object.__setattr__(self, "batch_size", batch_size)
        if self.max_wait is not None and self.batch_size == "dynamic":
            raise InvalidInputError(
                "Received `max_wait` without a fixed `batch_size`. Pass batch_size=N (--batch-size "
                "N), or remove `max_wait`: dynamic batches choose how long to wait."
            )
        sources = check_custom_sources(self.custom_objects_from)
        object.__setattr__(self, "custom_objects_from", sources)


def check_kind(options: ModelOptions, kind: Literal["tensors", "text"], name: str) -> None:
    """Raises an error if an option is set that models of this kind don't take.

    `name` is the name of the model.
    """
    for item in fields(options):
        value = getattr(options, item.name)
        if item.metadata["kind"] in ("", kind) or value == item.default:
            continue
        what = "a language model, and these do" if kind == "text" else "no language model, and does"
        raise InvalidInputError(
            f"Received {item.name}={value!r} for {name!r}, which is {what} not take it. Remove it."
        )
