"""The job of an export, the results of its routes, and the report."""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from keras_deepseek.artifacts.bundle import ALIKE, Verification
from keras_deepseek.artifacts.signature import Batch
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.formats.registry import ChosenFormat
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.graph.optimization import optimize
from keras_deepseek.graph.passes import PASSES

_OF_THE_BACKEND = "attention"
"""The pass that chooses by the speed of the running backend. The artifact runs elsewhere."""


@dataclass(frozen=True)
class ExportJob:
    """A model, the format to export it in, and the batches to verify the artifact on.

    Args:
        model: In the requested precision if that is a float.
        options: The format's arguments without calibration. `None` for a registered format, which
            another process can't make by its name.
        custom_objects_from: Modules, by name or by file, that define the model's custom layers.
        optional_samples: Lists of batches. Of each the first that the model itself takes is used.
        extreme_samples: Batches of large numbers, also optional, and compared less strictly.
        alternative_samples: Lists like `samples`, tried in turn if the model does not take those.
        allows_difference: Whether an artifact that computes something else is kept.
        precision: The artifact's, `"int8"` included; `None` for the model's own.
        calibration: The batches that the format was made with for int8.
        has_random_samples: Whether the samples are random, so that others may replace them.
        source: The format that this one is built from.
        reference: The model that the artifact is compared with; `None` for `model` itself.
    """

    model: NamedModel
    export_format: ExportFormat
    options: dict[str, Any] | None
    samples: list[Batch]
    custom_objects_from: Sequence[str | os.PathLike[str]] = ()
    optional_samples: Sequence[Sequence[Batch]] = ()
    extreme_samples: Sequence[Batch] = ()
    alternative_samples: Sequence[list[Batch]] = ()
    allows_difference: bool = False
    precision: str | None = None
    calibration: Sequence[Batch] | None = None
    has_random_samples: bool = False
    source: ChosenFormat | None = None
    reference: NamedModel | None = None

    @property
    def expected_model(self) -> NamedModel:
        """The model that gives the expected outputs, in its own precision."""
        return (self.reference or self.model).in_precision(None)

    @property
    def batches(self) -> list[Batch]:
        """All batches to run the artifact on: the samples, then the batches of large numbers."""
        return [*self.samples, *self.extreme_samples]

    def in_format(self, chosen: ChosenFormat) -> Self:
        """Returns a copy of the job for another export format."""
        return replace(
            self, export_format=chosen.export_format, options=chosen.options, source=chosen.source
        )


@dataclass(frozen=True)
class RouteResult:
    """The result of one route: its name, and the artifact's outputs for each sample, by name.

    The outputs are `None`, with a `reason`, if the artifact can't be run on this machine.
    """

    how: str
    outputs: list[Batch] | None
    reason: str = ""


@dataclass(frozen=True)
class MadeArtifact:
    """The result of an export; `passed_over` lists the failed routes, each with its reason."""

    route: str
    verification: Verification
    passed_over: tuple[str, ...] = ()


def optimize_job(job: ExportJob, say: Callable[[str], None]) -> ExportJob:
    """Returns a job with the model that `graph.optimize` rewrote.

    The artifact is still compared with the original model.
    """
    named = job.model
    say(f"{job.export_format.name}: optimizing the graph")
    passes = [name for name in PASSES if name != _OF_THE_BACKEND]
    alternatives = [samples[0] for samples in job.alternative_samples]
    for sample in [job.samples[0], *alternatives]:
        with contextlib.suppress(InvalidInputError):  # The model does not take these sizes.
            inputs = named.pack_inputs(sample)
            optimized = optimize(named.model, inputs, measure=False, passes=passes)
            break
    else:
        return job  # The export says what is wrong with the samples.
    report = optimized.report
    # Removing operations that change nothing is no reason to export another model.
    if report is None or not {*(report.passes or ())} - {"identities"}:
        say(f"{job.export_format.name}: there is nothing to optimize")
        return job
    original_count, optimized_count = report.multiply_adds
    say(f"{job.export_format.name}: {original_count:,} multiply-adds, now {optimized_count:,}")
    return replace(job, model=NamedModel(optimized, named.precision), reference=named)


@dataclass(frozen=True)
class ExportReport:
    """The report on an export or a check.

    Args:
        path: `pathlib.Path`. The bundle, or the file if a file was requested.
        format: string. The name of the format.
        route: string. How the artifact was made.
        verification: `artifacts.Verification`.
        passed_over: tuple of strings. The routes that were tried before, each with its reason.
        seconds: float. The duration, in seconds.

    Example:

    >>> from pathlib import Path
    >>> from keras_deepseek.artifacts import Verification
    >>> verification = Verification("unverified", reason="an engine needs a GPU")
    >>> print(ExportReport(Path("m.trt"), "tensorrt", "by hand", verification, (), 2.5))
    m.trt: tensorrt, unverified: an engine needs a GPU (by hand, 2.5 s)
    """

    path: Path
    format: str
    route: str
    verification: Verification
    passed_over: tuple[str, ...]
    seconds: float

    @property
    def verified(self) -> bool:
        """True if the artifact was verified: it computes what the model computes."""
        return self.verification.state == "verified"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Shows the report in a notebook as `print` does."""
        printer.text(str(self))

    def __str__(self) -> str:
        agreement = "".join(
            f", {name}: {measures['relative_error']:.1%} off"
            + (
                f", {measures['same_largest']:.1%} same answer"
                if "same_largest" in measures
                else ""
            )
            for name, measures in self.verification.agreement.items()
        )
        nonfinite = self.verification.nonfinite
        if nonfinite not in ("", ALIKE):
            agreement += f"; {nonfinite}"
        by = f" by {', '.join(names)}" if len(names := self.verification.signatures) > 1 else ""
        outcome = (
            f"verified on {self.verification.num_samples} batches{by}, largest difference "
            f"{self.verification.largest_difference:.2g}{agreement}"
            if self.verified
            else f"{self.verification.state}: {self.verification.reason.rstrip('.')}"
        )
        return f"{self.path}: {self.format}, {outcome} ({self.route}, {self.seconds:.1f} s)"
