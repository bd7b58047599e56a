"""Dataclasses for one export: the job, the result of a route, and the final artifact."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from keras_deepseek.artifacts.manifest import Verification
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.formats.registry import ChosenFormat


@dataclass(frozen=True)
class ExportJob:
    """A model, the format to export it in, and the batches to verify the artifact on.

    Args:
        model: In the requested precision if that is a float.
        options: The format's arguments without calibration. `None` for a registered format, which
            another process can't make by its name.
        custom_objects_from: Modules, by name or by file, that define the model's custom layers.
        optional_samples: Batches that are used only if the model itself takes them.
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
    samples: list[dict[str, Array]]
    custom_objects_from: Sequence[str | os.PathLike[str]] = ()
    optional_samples: Sequence[dict[str, Array]] = ()
    extreme_samples: Sequence[dict[str, Array]] = ()
    alternative_samples: Sequence[list[dict[str, Array]]] = ()
    allows_difference: bool = False
    precision: str | None = None
    calibration: Sequence[dict[str, Array]] | None = None
    has_random_samples: bool = False
    source: ChosenFormat | None = None
    reference: NamedModel | None = None

    @property
    def expected_model(self) -> NamedModel:
        """The model that gives the expected outputs, in its own precision."""
        return (self.reference or self.model).in_precision(None)

    @property
    def batches(self) -> list[dict[str, Array]]:
        """All batches to run the artifact on: the samples, then the batches of large numbers."""
        return [*self.samples, *self.extreme_samples]

    def in_format(self, chosen: ChosenFormat) -> Self:
        """Returns a copy of the job for another export format."""
        return replace(
            self,
            export_format=chosen.export_format,
            options=chosen.options,
            source=chosen.source,
        )


@dataclass(frozen=True)
class RouteResult:
    """The result of one route: its name, and the artifact's outputs for each sample, by name.

    The outputs are `None`, with a `reason`, if the artifact can't be run on this machine.
    """

    how: str
    outputs: list[dict[str, Array]] | None
    reason: str = ""


@dataclass(frozen=True)
class MadeArtifact:
    """The result of an export; `passed_over` lists the failed routes, each with its reason."""

    route: str
    verification: Verification
    passed_over: tuple[str, ...] = ()
