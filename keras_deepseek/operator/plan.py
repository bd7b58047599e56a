"""The plan: from an object and the live state to an ordered list of applies and deletes.

`make_plan` is a pure function. It is called at each event, and again after each failure, so a plan
may end anywhere: the next one leads to the same objects.

Replicas never stand in the Deployment's own apply. A second field manager applies them, so that
there is no moment at which no one owns them; without an owner the API server would set 1.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from keras_deepseek.operator import api
from keras_deepseek.operator.api import Autoscaling, Model, ModelDeploymentSpec, Region, Route
from keras_deepseek.operator.kinds import (
    AUTOSCALER,
    CHILDREN,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    GRPC_ROUTE,
    HTTP_ROUTE,
    MODEL_DEPLOYMENT,
    OPTIONAL,
    PORTS,
    SCALED_OBJECT,
    SERVICE,
    Kind,
    Object,
)
from keras_deepseek.operator.pods import make_pod_template
from keras_deepseek.operator.routes import make_grpc_route, make_http_route, route_annotations
from keras_deepseek.operator.scaling import make_scaler

MANAGER = "keras-deepseek"
SCALE_MANAGER = "keras-deepseek-scale"
"""The field manager that applies replicas."""

MANAGED = {"app.kubernetes.io/managed-by": "keras-deepseek"}
"""The label of each child, by which the operator watches them."""

Live = Mapping[tuple[Kind, str], Object]
"""The objects that exist, by kind and name."""

Problem = tuple[str, str]
"""A reason in CamelCase, and a message that says what is wrong and what to do."""


@dataclass(frozen=True)
class Settings:
    """The settings of the operator.

    Args:
        serving_image: The image of `keras-deepseek serve`.
        model_store: The URI under which models lie by name, or `None`.
        region: The region of this cluster, or `None`.
    """

    serving_image: str
    model_store: str | None = None
    region: str | None = None


@dataclass(frozen=True)
class Apply:
    """A server-side apply of an object."""

    kind: Kind
    name: str
    body: Object
    manager: str = MANAGER


@dataclass(frozen=True)
class Delete:
    """The deletion of an object."""

    kind: Kind
    name: str


@dataclass(frozen=True)
class Plan:
    """The steps, in their order; or the problem that the user has to solve, and no step."""

    steps: tuple[Apply | Delete, ...] = ()
    problem: Problem | None = None
    notice: str | None = None
    """Something to say although nothing is wrong."""
    fewest_replicas: int = 0
    """The replicas that must be available."""


class PlanError(Exception):
    """A problem that the user has to solve.

    Args:
        reason: The reason, in CamelCase.
        message: What is wrong, and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def make_plan(deployment: Object, live: Live, kinds: Collection[Kind], settings: Settings) -> Plan:
    """Returns the plan for one `ModelDeployment`.

    Args:
        deployment: The object, as the API server has it.
        live: The objects of its names and kinds that exist.
        kinds: The kinds that the API server has.
        settings: The settings of the operator.
    """
    try:
        return _Planner(deployment, live, kinds, settings).plan()
    except PlanError as error:
        return Plan(problem=(error.reason, str(error)))


@dataclass(frozen=True)
class _Track:
    """The stable version, or the canary."""

    name: str
    labels: dict[str, str]
    model: Model | None
    image: str
    args: list[str]
    replicas: int | None
    """Without autoscaling the replicas, or `None` for those that run; with it the fewest."""
    first_replicas: int
    """The replicas of a new Deployment with autoscaling."""


class _Planner:
    """The making of one plan."""

    def __init__(
        self, deployment: Object, live: Live, kinds: Collection[Kind], settings: Settings
    ) -> None:
        whole = {**deployment, "apiVersion": api.API_VERSION, "kind": api.KIND, "status": {}}
        if fault := api.find_fault(api.ModelDeployment, whole):
            raise PlanError("InvalidObject", fault)
        self._spec = api.ModelDeployment.model_validate(whole).spec
        self._metadata = deployment["metadata"]
        self._name = self._metadata["name"]
        self._namespace = self._metadata.get("namespace", "default")
        self._live = live
        self._kinds = kinds
        self._settings = settings
        self._steps: list[Apply | Delete] = []

    def plan(self) -> Plan:
        """Returns the plan. Raises a `PlanError`."""
        region = self._region()
        if self._spec.regions and region is None:
            self._delete_unwanted()
            here = self._settings.region
            notice = f"The region {here!r} isn't listed in spec.regions: nothing runs here."
            return Plan(tuple(self._steps), notice=notice)
        if region is not None:
            self._spec = _with_region(self._spec, region)
        self._check_kinds()
        tracks = self._tracks()
        fewest = [self._plan_track(track, region.template if region else {}) for track in tracks]
        if self._spec.route:
            self._plan_routes(self._spec.route, region, tracks)
        self._delete_unwanted()
        return Plan(tuple(self._steps), fewest_replicas=fewest[0])

    @property
    def _autoscaling(self) -> Autoscaling | None:
        autoscaling = self._spec.autoscaling
        return autoscaling if autoscaling and autoscaling.enabled else None

    def _region(self) -> Region | None:
        regions = {region.name: region for region in self._spec.regions}
        if regions and self._settings.region is None:
            raise PlanError(
                "RegionUnknown",
                "The object lists regions, and the operator doesn't know its own. Start it with "
                "--region NAME.",
            )
        return regions.get(self._settings.region or "")

    def _check_kinds(self) -> None:
        route = self._spec.route
        wanted = {
            SCALED_OBJECT: self._autoscaling and self._autoscaling.engine == "KEDA",
            HTTP_ROUTE: route,
            GRPC_ROUTE: route and route.grpc_hostnames,
        }
        for kind, is_wanted in wanted.items():
            if is_wanted and kind not in self._kinds:
                raise PlanError(
                    "KindMissing",
                    f"The cluster has no {kind.name}. Install {OPTIONAL[kind]}, or remove the "
                    "setting that needs it.",
                )

    def _tracks(self) -> list[_Track]:
        spec, scaling = self._spec, self._autoscaling
        stable = _Track(
            name=self._name,
            labels=self._labels("stable"),
            model=self._model(spec.model, spec.image),
            image=spec.image or self._settings.serving_image,
            args=spec.args,
            replicas=scaling.min_replicas if scaling else spec.replicas,
            first_replicas=spec.replicas or 0,
        )
        canary = spec.canary
        if canary is None:
            return [stable]
        image = canary.image or spec.image
        return [
            stable,
            _Track(
                name=canary_name(self._name),
                labels=self._labels("canary"),
                model=self._model(canary.model or spec.model, image),
                image=image or self._settings.serving_image,
                args=spec.args if canary.args is None else canary.args,
                replicas=canary.replicas,
                first_replicas=canary.replicas,
            ),
        ]

    def _labels(self, track: str) -> dict[str, str]:
        return {"app.kubernetes.io/instance": self._name, f"{api.GROUP}/track": track}

    def _model(self, model: Model | None, image: str | None) -> Model | None:
        if model is not None or image is not None:
            return model
        if self._settings.model_store is None:
            raise PlanError(
                "ModelMissing",
                "The object names no model. Add spec.model.uri, or spec.image with a model in it, "
                "or start the operator with --model-store URI.",
            )
        return Model(uri=f"{self._settings.model_store.rstrip('/')}/{self._name}")

    def _plan_track(self, track: _Track, regional_template: Object | None) -> int:
        """Plans the Service, the Deployment, its scaler and budget; returns the fewest replicas."""
        rollout = self._spec.rollout or api.Rollout()
        try:
            template = make_pod_template(
                self._name,
                track.labels,
                track.model,
                track.image,
                track.args,
                self._spec,
                [self._spec.template, regional_template or {}],
            )
        except ValueError as error:
            raise PlanError("TemplateBroken", f"spec.{error}") from error
        ports: list[Object] = [
            {"name": port, "port": number, "targetPort": port} for port, number in PORTS.items()
        ]
        ports[list(PORTS).index("grpc")]["appProtocol"] = "kubernetes.io/h2c"
        self._apply(SERVICE, track, {"selector": track.labels, "ports": ports})
        strategy = {"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable}
        deployment = {
            "selector": {"matchLabels": track.labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": strategy},
            "progressDeadlineSeconds": rollout.start_seconds + 60,
            "template": template,
        }
        self._apply(DEPLOYMENT, track, deployment)
        fewest = self._plan_replicas(track)
        if fewest > 1:
            budget = {"maxUnavailable": 1, "selector": {"matchLabels": track.labels}}
            self._apply(DISRUPTION_BUDGET, track, budget)
        return fewest

    def _plan_replicas(self, track: _Track) -> int:
        """Plans the replicas and the scaler; returns the fewest replicas."""
        live, scaling = self._live.get((DEPLOYMENT, track.name)), self._autoscaling
        if scaling is None:  # The scaler is deleted later, when the replicas have an owner.
            running = (live or {}).get("spec", {}).get("replicas", 1)
            replicas = running if track.replicas is None else track.replicas
            self._scale(track, replicas)
            return int(replicas)
        fewest = track.replicas or 0
        if not owners_of_replicas(live):  # New: nobody has said how many.
            self._scale(track, min(max(track.first_replicas, fewest), scaling.max_replicas))
        kind, body = make_scaler(track.name, self._namespace, scaling, fewest)
        # Two scalers would work against each other, so the other one goes first.
        self._delete(SCALED_OBJECT if kind is AUTOSCALER else AUTOSCALER, track.name)
        self._apply(kind, track, body)
        return fewest

    def _plan_routes(self, route: Route, region: Region | None, tracks: list[_Track]) -> None:
        stable, *canaries = tracks
        weights = {stable.name: 100}
        for canary in canaries:
            # Requests to a Service without ready pods would fail.
            status = self._live.get((DEPLOYMENT, canary.name), {}).get("status", {})
            share = self._spec.canary.weight if self._spec.canary else 0
            share = share if status.get("readyReplicas") else 0
            weights = {stable.name: 100 - share, canary.name: share}
        annotations = route_annotations(route, region)
        model = (self._spec.model.name if self._spec.model else None) or self._name
        self._apply(HTTP_ROUTE, stable, make_http_route(route, model, weights), annotations)
        if route.grpc_hostnames:
            self._apply(GRPC_ROUTE, stable, make_grpc_route(route, weights), annotations)

    def _scale(self, track: _Track, replicas: int) -> None:
        body = {
            "apiVersion": DEPLOYMENT.api_version,
            "kind": DEPLOYMENT.name,
            "metadata": {"name": track.name, "namespace": self._namespace},
            "spec": {"replicas": replicas},
        }
        self._steps.append(Apply(DEPLOYMENT, track.name, body, SCALE_MANAGER))

    def _apply(
        self, kind: Kind, track: _Track, spec: Object, annotations: dict[str, str] | None = None
    ) -> None:
        child = self._live.get((kind, track.name))
        if child is not None and not self._is_ours(child):
            raise PlanError(
                "NameTaken",
                f"The {kind.name} {track.name!r} exists and belongs to something else. Delete it, "
                "or give this object another name.",
            )
        owner = {
            "apiVersion": MODEL_DEPLOYMENT.api_version,
            "kind": MODEL_DEPLOYMENT.name,
            "name": self._name,
            "uid": self._metadata["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        metadata = {
            "name": track.name,
            "namespace": self._namespace,
            "labels": {**MANAGED, **track.labels},
            "ownerReferences": [owner],
            **({"annotations": annotations} if annotations else {}),
        }
        body = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata}
        self._steps.append(Apply(kind, track.name, {**body, "spec": spec}))

    def _delete(self, kind: Kind, name: str) -> None:
        child = self._live.get((kind, name))
        if child is not None and self._is_ours(child):
            self._steps.append(Delete(kind, name))

    def _delete_unwanted(self) -> None:
        """Deletes the children that no step names."""
        named = {(step.kind, step.name) for step in self._steps}
        for kind in CHILDREN:
            for name in child_names(self._name):
                if (kind, name) not in named:
                    self._delete(kind, name)

    def _is_ours(self, child: Object) -> bool:
        owners = child["metadata"].get("ownerReferences", [])
        return any(owner["uid"] == self._metadata["uid"] for owner in owners)


def canary_name(name: str) -> str:
    """Returns the name of the children of a canary."""
    return f"{name}-canary"


def child_names(name: str) -> tuple[str, str]:
    """Returns the names that the children of an object have."""
    return name, canary_name(name)


def owners_of_replicas(deployment: Object | None) -> set[str]:
    """Returns the field managers that own the replicas of a Deployment."""
    fields = (deployment or {}).get("metadata", {}).get("managedFields", [])
    return {
        each["manager"]
        for each in fields
        if "f:replicas" in each.get("fieldsV1", {}).get("f:spec", {})
    }


def _with_region(spec: ModelDeploymentSpec, region: Region) -> ModelDeploymentSpec:
    """Returns the settings with those of a region in place. Raises an error if they don't fit."""
    values = spec.model_dump(by_alias=True, exclude_unset=True)
    given = region.model_dump(by_alias=True, exclude_none=True)
    values |= {name: given[name] for name in ("replicas", "resources") if name in given}
    limits = {name: given[name] for name in ("minReplicas", "maxReplicas") if name in given}
    if limits and "autoscaling" not in values:
        raise PlanError(
            "InvalidObject",
            f"The region {region.name!r} sets {' and '.join(limits)} without spec.autoscaling.",
        )
    if limits:
        values["autoscaling"] |= limits
    return ModelDeploymentSpec.model_validate(values)
