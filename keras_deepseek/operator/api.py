"""The `ModelDeployment` object: its fields, their checks, and the rules between them.

These models are the single source of the API. `crd.py` makes the CustomResourceDefinition from
them. The API server checks `rules`, and the validators check the same in Python.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.operator.fields import (
    Count,
    FreeObject,
    Names,
    Part,
    Quantity,
    Target,
    Text,
    Texts,
)

GROUP = "deepseek.io"
VERSION = "v1"
KIND = "ModelDeployment"
PLURAL = "modeldeployments"
API_VERSION = f"{GROUP}/{VERSION}"

# A Service takes 63 characters, and the canary's name has 7 more.
_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"


class Rule(NamedTuple):
    """A rule between fields, for the API server in CEL, and for Python."""

    cel: str
    message: str
    holds: Callable[[Any], object] = lambda _: True


def _add_rules(schema: dict[str, Any], model: type[Any]) -> None:
    if model.rules:
        rules = [{"rule": rule.cel, "message": rule.message} for rule in model.rules]
        schema["x-kubernetes-validations"] = rules


class _Fields(BaseModel):
    """The base class of the parts of a `ModelDeployment`, whose fields are camelCase in YAML."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        json_schema_extra=_add_rules,
        populate_by_name=True,
        strict=True,  # "3" is no number to the API server.
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for rule in self.rules:
            if not rule.holds(self):
                raise ValueError(rule.message)
        return self


class Model(_Fields):
    """The model to serve."""

    uri: Text
    """pvc://CLAIM/PATH, a volume claim; oci://IMAGE@sha256:DIGEST, an image volume; else what
    keras-deepseek serve reads, as s3://, gs://, az://, https:// or hf://."""
    name: Annotated[str, Field(pattern=r"^[-A-Za-z0-9_.]+$", max_length=253)] | None = None
    """The model's name in URLs. Default: the name of this object."""

    rules = (
        Rule(
            "!self.uri.startsWith('pvc://') || "
            "(self.uri.matches('^pvc://[a-z0-9][-.a-z0-9]*/.+$') && !self.uri.contains('..'))",
            "pvc:// needs a claim and a path without '..', as in pvc://models/digits",
            lambda self: re.match(r"(?!pvc://)|pvc://[a-z0-9][-.a-z0-9]*/(?!.*\.\.).", self.uri),
        ),
        Rule(
            "!self.uri.startsWith('oci://') || self.uri.matches('^oci://.+@sha256:[0-9a-f]{64}$')",
            "oci:// needs a digest, as in oci://registry/model@sha256:...",
            lambda self: re.match(r"(?!oci://)|oci://.+@sha256:[0-9a-f]{64}$", self.uri),
        ),
        Rule(
            "self.uri.contains('://')",
            "the uri needs a scheme, as in s3://bucket/model",
            lambda self: "://" in self.uri,
        ),
    )


class Resources(_Fields):
    """The resources of each pod."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the scheduler reserves, as {cpu: 2, memory: 4Gi}."""
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What a pod may use at most, as {memory: 4Gi, nvidia.com/gpu: 1}."""


class Metric(_Fields):
    """A number for each pod that autoscaling keeps at its target."""

    type: Literal["RequestsPerSecond", "Concurrency", "QueueTime", "CPU"]
    """RequestsPerSecond: requests that arrive; Concurrency: requests in flight; QueueTime: seconds
    that the oldest row waits; CPU: percent of the requested CPU."""
    target: Target
    """The value for each pod, as 1000 requests per second or 50m (0.05 s)."""


class Policy(_Fields):
    """A limit on the pods that are added or removed within a period."""

    type: Literal["Pods", "Percent"]
    """The unit of the value."""
    value: Annotated[int, Field(ge=1, le=10_000)]
    """Pods, or percent of the present pods."""
    period_seconds: Annotated[int, Field(ge=1, le=1800)]
    """The period in seconds."""


class ScalingRules(_Fields):
    """The speed of scaling in one direction."""

    stabilization_window_seconds: Annotated[int, Field(ge=0, le=3600)] | None = None
    """Seconds of past recommendations that are considered."""
    select_policy: Literal["Max", "Min", "Disabled"] | None = None
    """The policy that counts, if there are several."""
    policies: Annotated[list[Policy], Field(max_length=8)] | None = None
    """The limits."""


class Behavior(_Fields):
    """The speed of scaling, in the words of the HorizontalPodAutoscaler."""

    scale_up: ScalingRules | None = None
    """Default: at once, by 100 percent or 10 pods in 15 seconds, whichever is more."""
    scale_down: ScalingRules | None = None
    """Default: after 300 seconds, by 10 percent a minute."""


class Autoscaling(_Fields):
    """Replicas that follow the load."""

    enabled: bool = True
    """False keeps the settings and stops the scaling."""
    engine: Literal["HPA", "KEDA"] = "HPA"
    """HPA: Kubernetes's own, with a metrics adapter for all types but CPU; KEDA: a ScaledObject."""
    min_replicas: Count = 1
    """The fewest replicas. Default: 1. Zero needs KEDA and a trigger of its own."""
    max_replicas: Annotated[int, Field(ge=1, le=10_000)]
    """The most replicas."""
    metrics: Annotated[list[Metric], Field(min_length=1, max_length=4)]
    """The metrics. The one that asks for most replicas counts."""
    behavior: Behavior | None = None
    """The speed of scaling."""
    triggers: Annotated[list[FreeObject], Field(max_length=8)] = []
    """KEDA only: further triggers in KEDA's words, such as the gateway's requests in Prometheus."""

    rules = (
        Rule(
            "self.?minReplicas.orValue(1) <= self.maxReplicas",
            "minReplicas is above maxReplicas",
            lambda self: self.min_replicas <= self.max_replicas,
        ),
        Rule(
            "self.?minReplicas.orValue(1) > 0 || "
            "(self.?engine.orValue('HPA') == 'KEDA' && self.?triggers.orValue([]).size() > 0)",
            "minReplicas 0 needs engine KEDA, and a trigger that counts requests while no pod runs",
            lambda self: self.min_replicas > 0 or (self.engine == "KEDA" and self.triggers),
        ),
        Rule(
            "self.?triggers.orValue([]).size() == 0 || self.?engine.orValue('HPA') == 'KEDA'",
            "triggers need engine KEDA",
            lambda self: not self.triggers or self.engine == "KEDA",
        ),
    )


class Batching(_Fields):
    """The batching of requests in each pod."""

    max_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """The most rows of a batch."""
    target_latency: Target | None = None
    """Seconds in which requests are answered, or else refused, as 200m: 0.2 seconds."""
    max_queue_rows: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Rows that may wait before requests are refused: the buffer for bursts."""


class Rollout(_Fields):
    """The replacement of pods by those of a new version."""

    max_surge: Part = "25%"
    """Pods above the replicas, as a number or a percentage. Default: 25%."""
    max_unavailable: Part = 0
    """Pods that may be missing. Default: 0. Without a spare GPU, set maxSurge 0 and this to 1."""
    start_seconds: Annotated[int, Field(ge=10, le=86_400)] = 600
    """Seconds that a pod may take to load its model. Default: 600."""

    rules = (
        Rule(
            "!has(self.maxSurge) || !(self.maxSurge == 0 || self.maxSurge == '0%') || "
            "(has(self.maxUnavailable) && "
            "!(self.maxUnavailable == 0 || self.maxUnavailable == '0%'))",
            "maxSurge and maxUnavailable are both 0: no pod could be replaced",
            lambda self: {self.max_surge, self.max_unavailable} - {0, "0%"},
        ),
    )


class Canary(_Fields):
    """A second version that gets a part of the requests."""

    weight: Annotated[int, Field(ge=0, le=100)]
    """The percentage of requests."""
    replicas: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """The replicas of the canary, or the fewest with autoscaling. Default: the weight's
    part of those of the stable version."""
    model: Model | None = None
    """The model of the canary. Default: that of this object."""
    image: Text | None = None
    """The serving image of the canary. Default: that of this object."""
    args: Annotated[list[Text], Field(max_length=64)] | None = None
    """The arguments of the canary. Default: those of this object."""


class Gateway(_Fields):
    """The Gateway that a route belongs to."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Its name."""
    namespace: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Its namespace. Default: that of this object."""
    section_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """The name of its listener. Default: all listeners."""


class Route(_Fields):
    """The way of requests from outside the cluster, by the Gateway API."""

    gateway: Gateway
    """The Gateway."""
    hostnames: Names = []
    """Host names of requests over HTTP. Default: those of the Gateway."""
    grpc_hostnames: Names = []
    """Host names of requests over gRPC, which must be others. Default: no gRPC."""
    annotations: Texts = {}
    """Annotations of the routes, for external-dns and others."""


class Region(_Fields):
    """The settings of one region, in place of those of the object."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    """The region, as the operator's --region names it."""
    weight: Annotated[int, Field(ge=0, le=255)] | None = None
    """The weight of this region's DNS records, for external-dns."""
    replicas: Count | None = None
    """The replicas."""
    min_replicas: Count | None = None
    """The fewest replicas with autoscaling."""
    max_replicas: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """The most replicas with autoscaling."""
    resources: Resources | None = None
    """The resources."""
    template: FreeObject | None = None
    """A partial pod template, merged after that of the object."""


def _fits(autoscaling: Autoscaling | None, region: Region) -> bool:
    if autoscaling is None:
        return True
    fewest = autoscaling.min_replicas if region.min_replicas is None else region.min_replicas
    return fewest <= (region.max_replicas or autoscaling.max_replicas)


class ModelDeploymentSpec(_Fields):
    """The wanted state."""

    model: Model | None = None
    """The model. Default: the operator's model store, followed by the name of this object."""
    image: Text | None = None
    """The serving image. Without `model` it holds its own, at /models/model. Default: the
    operator's serving image."""
    args: Annotated[list[Text], Field(max_length=64)] = []
    """Further arguments of keras-deepseek serve."""
    resources: Resources | None = None
    """The resources of each pod."""
    replicas: Count | None = None
    """The replicas; with autoscaling, those at the start. Default: those that run, or 1."""
    autoscaling: Autoscaling | None = None
    """Replicas that follow the load."""
    batching: Batching | None = None
    """The batching in each pod."""
    rollout: Rollout | None = None
    """The replacement of pods."""
    canary: Canary | None = None
    """A second version that gets a part of the requests."""
    route: Route | None = None
    """The way of requests from outside the cluster."""
    regions: Annotated[
        list[Region],
        Field(
            max_length=64,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = []
    """Settings by region. If it isn't empty, regions that it doesn't name get nothing."""
    template: FreeObject = {}
    """A partial pod template for everything else. Lists are merged by name; the container is
    named server."""

    rules = (
        Rule(
            "!has(self.canary) || has(self.route)",
            "a canary needs a route, which splits requests",
            lambda self: self.canary is None or self.route is not None,
        ),
        Rule(
            "!has(self.autoscaling) || !has(self.regions) || self.regions.all(r, "
            "r.?minReplicas.orValue(self.autoscaling.?minReplicas.orValue(1)) <= "
            "r.?maxReplicas.orValue(self.autoscaling.maxReplicas))",
            "minReplicas of a region is above its maxReplicas",
            lambda self: all(_fits(self.autoscaling, region) for region in self.regions),
        ),
        Rule(
            "!has(self.autoscaling) || (self.autoscaling.?engine.orValue('HPA') == 'KEDA' && "
            "self.autoscaling.?triggers.orValue([]).size() > 0) || "
            "!has(self.regions) || self.regions.all(r, r.?minReplicas.orValue(1) > 0)",
            "minReplicas 0 of a region needs engine KEDA, and a trigger that counts requests",
            lambda self: (
                self.autoscaling is None
                or (self.autoscaling.engine == "KEDA" and self.autoscaling.triggers)
                or all(region.min_replicas != 0 for region in self.regions)
            ),
        ),
    )

    @field_validator("regions")
    @classmethod
    def _check_regions(cls, regions: list[Region]) -> list[Region]:
        if len({region.name for region in regions}) < len(regions):
            raise ValueError("a region is named twice")
        return regions


class ObjectMeta(BaseModel):
    """The metadata of an object. The API server has the full form."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(pattern=_NAME, max_length=56)]
    namespace: str = "default"


class ModelDeployment(BaseModel):
    """A model that is served by a number of pods, behind one Service.

    Example:

    >>> from keras_deepseek.operator import ModelDeployment
    >>> deployment = ModelDeployment.model_validate(
    ...     {"metadata": {"name": "digits"}, "spec": {"model": {"uri": "s3://models/digits"}}}
    ... )
    >>> deployment.spec.model.uri
    's3://models/digits'
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra=_add_rules, populate_by_name=True)

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"self.metadata.name.matches('{_NAME}') && self.metadata.name.size() <= 56",
            "the name must be at most 56 of a-z, 0-9 and -, begin with a letter and not end with -",
        ),
    )

    api_version: Annotated[Literal["deepseek.io/v1"], Field(alias="apiVersion")] = "deepseek.io/v1"
    kind: Literal["ModelDeployment"] = "ModelDeployment"
    metadata: ObjectMeta
    spec: ModelDeploymentSpec
    status: dict[str, Any] = {}


_Model = TypeVar("_Model", bound=BaseModel)


def find_fault(model: type[BaseModel], content: Any) -> str | None:
    """Returns what is wrong with an object of YAML, with the path of the field, or `None`."""
    try:
        read_object(model, content)
    except InvalidInputError as error:
        return str(error)
    return None


def read_object(model: type[_Model], content: Any) -> _Model:
    """Returns an object of YAML as a model. Raises an `InvalidInputError` with the field's path."""
    try:
        return model.model_validate(content, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidInputError(_describe(error)) from error


def _describe(error: ValidationError) -> str:
    fault, *_ = error.errors()
    *parents, last = [part for part in fault["loc"] if part not in _BRANCHES] or [""]
    path = ".".join(map(str, [*parents, last]))
    if fault["type"] != "extra_forbidden":
        message = fault["msg"].removeprefix("Value error, ")
        if _BRANCHES.intersection(fault["loc"]):
            message = f"must be an integer or a text, received {fault['input']!r}"
        return f"{path}: {message}." if path else f"{message}."
    return f"{'.'.join(map(str, parents))}: unknown field {last!r}."


_BRANCHES = frozenset(("int", "str"))
"""Words of pydantic for the parts of a union. No field has such a name."""
