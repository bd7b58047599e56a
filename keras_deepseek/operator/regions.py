"""The regions of a `ModelDeployment`: the one of this cluster, and its settings."""

from collections.abc import Iterable

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.operator import api
from keras_deepseek.operator.api import ModelDeploymentSpec, Region
from keras_deepseek.operator.kinds import Object
from keras_deepseek.operator.problems import PlanError

REGION_ANNOTATION = f"{api.GROUP}/region"
"""The annotation of each child: the region of the operator that made it."""


def find_region(spec: ModelDeploymentSpec, here: str | None) -> Region | None:
    """Returns the region of this cluster, or `None` if the object doesn't list it."""
    if spec.regions and here is None:
        raise PlanError(
            "RegionUnknown",
            "The object lists regions, and the operator doesn't know its own. Start it with "
            "--region NAME.",
        )
    return next((region for region in spec.regions if region.name == here), None)


def with_region(spec: ModelDeploymentSpec, region: Region) -> ModelDeploymentSpec:
    """Returns the settings with those of a region in place. Raises an error if they don't fit."""
    values = spec.model_dump(by_alias=True, exclude_unset=True)
    fields = region.model_dump(by_alias=True, exclude_none=True)
    values |= {name: fields[name] for name in ("replicas", "resources") if name in fields}
    limits = {name: fields[name] for name in ("minReplicas", "maxReplicas") if name in fields}
    if limits and "autoscaling" not in values:
        raise PlanError(
            "InvalidObject",
            f"The region {region.name!r} sets {' and '.join(limits)} without spec.autoscaling.",
        )
    if limits:
        values["autoscaling"] |= limits
    try:
        return api.read_object(ModelDeploymentSpec, values)
    except InvalidInputError as error:
        message = f"With the region {region.name!r}, spec.{error}"
        raise PlanError("InvalidObject", message) from error


def check_region_of_children(children: Iterable[Object], here: str | None) -> None:
    """Raises a `PlanError` if children are of another region: `--region` may be mistaken."""
    for child in children:
        other = child["metadata"].get("annotations", {}).get(REGION_ANNOTATION)
        if other != here:
            raise PlanError(
                "RegionChanged",
                f"The region {here!r} isn't listed in spec.regions, and what runs here was made "
                f"for {f'the region {other!r}' if other else 'no region'}. It is left as it is: "
                "correct the operator's --region, or delete the object's children.",
            )
