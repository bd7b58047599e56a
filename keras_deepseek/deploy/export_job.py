"""What is asked for and what came of it, on the way from an `Exporter` through its routes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras_deepseek.artifacts.manifest import Verification
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy.formats.export_format import ExportFormat


@dataclass(frozen=True)
class ExportJob:
    """What a route is asked to do.

    Args:
        model: `NamedModel`, in the precision that is asked for where that is a float.
        export_format: `ExportFormat`.
        options: dict. The arguments that the format was made with, its calibration apart.
        samples: For each batch its arrays by input name.
        custom_objects_from: Modules, by name or by file, that define the model's custom layers.
        further_samples: Batches to verify on as well, if the model itself takes them. Defaults to
            `()`.
        wide_samples: Batches of large numbers, the same, which are compared less strictly. Defaults
            to `()`.
        other_samples: Lists like `samples`, for a model that does not take those. Defaults to `()`.
        takes_differing: boolean. Whether an artifact that computes something else is better than
            none. Defaults to `False`.
        precision: string. What the artifact computes in, `"int8"` among them. Defaults to `None`:
            what the model does.
        calibration: The batches that the format was made with for int8. Defaults to `None`.
        is_drawn: boolean. Whether the samples are random, so that others may stand for them.
            Defaults to `False`.
    """

    model: NamedModel
    export_format: ExportFormat
    options: dict[str, Any]
    samples: list[dict[str, Array]]
    custom_objects_from: Sequence[str | os.PathLike[str]] = ()
    further_samples: Sequence[dict[str, Array]] = ()
    wide_samples: Sequence[dict[str, Array]] = ()
    other_samples: Sequence[list[dict[str, Array]]] = ()
    takes_differing: bool = False
    precision: str | None = None
    calibration: Sequence[dict[str, Array]] | None = None
    is_drawn: bool = False

    @property
    def batches(self) -> list[dict[str, Array]]:
        """What an artifact is run on: the samples, and behind them those of large numbers."""
        return [*self.samples, *self.wide_samples]


@dataclass(frozen=True)
class RouteResult:
    """What a route gives back.

    Args:
        how: string. How the artifact was made.
        outputs: For each sample the artifact's arrays by output name; `None` where it can't be run
        here.
        reason: string. Why it can't be run.
    """

    how: str
    outputs: list[dict[str, Array]] | None
    reason: str = ""


@dataclass(frozen=True)
class MadeArtifact:
    """An artifact that a route made.

    Args:
        route: string. How it was made.
        verification: `Verification`.
        passed_over: tuple of strings. The routes that were tried before, each with its reason.
    """

    route: str
    verification: Verification
    passed_over: tuple[str, ...] = ()
