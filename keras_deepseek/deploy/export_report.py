"""The report that an export or a check of an artifact returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.manifest import ALIKE, Verification


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
