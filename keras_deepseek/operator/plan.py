"""The plan: from an object and the live state to an ordered list of applies and deletes.

`make_plan` is a pure function. It is called at each event, and again after each failure, so a plan
may end anywhere: the next one leads to the same objects.

Replicas never stand in the Deployment's own apply. A second field manager applies them, so that
there is no moment at which no one owns them; without an owner the API server would set 1.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.operator import api
from keras_deepseek.operator.api import Autoscaling, Model, Region, Route
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
from keras_deepseek.operator.pods import check_arguments, make_pod_template
from keras_deepseek.operator.problems import PlanError, Problem, rollout_waits_for
from keras_deepseek.operator.regions import (
    REGION_ANNOTATION,
    check_region_of_children,
    find_region,
    with_region,
)
from keras_deepseek.operator.routes import (
    canary_share,
    make_grpc_route,
    make_http_route,
    route_annotations,
    routed_share,
)
from keras_deepseek.operator.scaling import make_scaler

MANAGER = "keras-deepseek"
SCALE_MANAGER = "keras-deepseek-scale"
"""The field manager that applies replicas."""

MANAGED = {"app.kubernetes.io/managed-by": "keras-deepseek"}
"""The label of each child, by which the operator watches them."""

INSTANCE = "app.kubernetes.io/instance"
"""The label of children and pods that names the object."""

KEPT_ANNOTATION = f"{api.GROUP}/kept-above-replicas"
"""The annotation of a Deployment that has more pods than `spec.replicas`, which is its value.

The pods run since before autoscaling was switched off. They stay until `spec.replicas` changes.
"""

Live = Mapping[tuple[Kind, str], Object]
"""The objects that exist, by kind and name."""

_ROLLOUT_MARGIN_SECONDS = 60

_LOG = logging.getLogger(__name__)


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

    def __post_init__(self) -> None:
        """Refuses an empty region, as an unset variable gives it."""
        if self.region == "":
            raise InvalidInputError("--region is empty. Name the region, or leave it out.")


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
    uid: str
    """The object to delete. Another object that has its name by then stays."""


@dataclass(frozen=True)
class Plan:
    """The steps, in their order; or the problem that the user has to solve, and no step."""

    steps: tuple[Apply | Delete, ...] = ()
    problem: Problem | None = None
    notice: str | None = None
    """A message for the user although nothing is wrong."""
    fewest_replicas: Mapping[str, int] = field(default_factory=dict)
    """The replicas that must be available, by the name of a Deployment."""


def make_plan(
    model_deployment: Object, live: Live, kinds: Collection[Kind], settings: Settings
) -> Plan:
    """Returns the plan for one `ModelDeployment`. An error becomes the problem of the plan.

    Args:
        model_deployment: The object, as the API server has it.
        live: The objects of its names and kinds that exist.
        kinds: The kinds that the API server has.
        settings: The settings of the operator.
    """
    try:
        return _Planner(model_deployment, live, kinds, settings).plan()
    except PlanError as error:
        return Plan(problem=error.problem)
    except Exception as error:  # noqa: BLE001 - one object must not end the operator.
        name = model_deployment["metadata"]["name"]
        _LOG.exception("%s: no plan could be made", name)
        message = f"The operator failed on this object, please report it: {error!r}"
        return Plan(problem=Problem("InternalError", message))


@dataclass(frozen=True)
class _Track:
    """A version of the model with its own Deployment: the stable version, or the canary."""

    name: str
    labels: dict[str, str]
    model: Model | None
    image: str
    args: list[str]
    args_field: str
    fewest: int
    """The replicas that must be available: all, or with autoscaling the fewest."""
    most: int
    first: int
    """The replicas of a new Deployment; without autoscaling, of an existing one, too."""
    annotations: dict[str, str] = field(default_factory=dict)


class _Planner:
    def __init__(
        self, model_deployment: Object, live: Live, kinds: Collection[Kind], settings: Settings
    ) -> None:
        whole = {**model_deployment, "apiVersion": api.API_VERSION, "kind": api.KIND, "status": {}}
        try:
            self._spec = api.read_object(api.ModelDeployment, whole).spec
        except InvalidInputError as error:
            raise PlanError("InvalidObject", str(error)) from error
        self._metadata = model_deployment["metadata"]
        self._status = model_deployment.get("status", {})
        self._name = self._metadata["name"]
        self._canary = canary_name(self._name)
        self._namespace = self._metadata.get("namespace", "default")
        self._live = live
        self._kinds = kinds
        self._settings = settings
        self._steps: list[Apply | Delete] = []

    def plan(self) -> Plan:
        here = self._settings.region
        region = find_region(self._spec, here)
        if self._spec.regions and region is None:
            check_region_of_children(filter(self._is_ours, self._live.values()), here)
            self._delete_unwanted()
            notice = f"The region {here!r} isn't listed in spec.regions: nothing runs here."
            return Plan(tuple(self._steps), notice=notice)
        if region is not None:
            self._spec = with_region(self._spec, region)
        self._check_kinds()
        tracks = self._tracks()
        for track in tracks:
            self._plan_track(track, region.template if region else {})
        promotes = self._promotes(tracks[0])
        if self._spec.route:
            weights = {self._name: 100}
            if self._spec.canary or promotes:
                canary = self._live.get((DEPLOYMENT, self._canary), {})
                routed = routed_share(self._live.get((HTTP_ROUTE, self._name), {}), self._canary)
                share = canary_share(canary, routed, self._spec.canary, tracks[-1].fewest)
                weights = {self._name: 100 - share, self._canary: share}
            self._plan_routes(self._spec.route, region, weights)
        self._delete_unwanted(keeps_canary=promotes)
        return Plan(
            tuple(self._steps), fewest_replicas={track.name: track.fewest for track in tracks}
        )

    @property
    def _autoscaling(self) -> Autoscaling | None:
        autoscaling = self._spec.autoscaling
        return autoscaling if autoscaling and autoscaling.enabled else None

    def _check_kinds(self) -> None:
        route = self._spec.route
        needs = {
            SCALED_OBJECT: self._autoscaling and self._autoscaling.engine == "KEDA",
            HTTP_ROUTE: route,
            GRPC_ROUTE: route and route.grpc_hostnames,
        }
        for kind, is_needed in needs.items():
            if is_needed and kind not in self._kinds:
                raise PlanError(
                    "KindMissing",
                    f"The cluster has no {kind.name}. Install {OPTIONAL[kind]}, or remove the "
                    "setting that needs it.",
                )

    def _tracks(self) -> list[_Track]:
        spec, scaling = self._spec, self._autoscaling
        live = self._live.get((DEPLOYMENT, self._name), {})
        running = int(live.get("spec", {}).get("replicas", 1))
        if scaling:
            fewest, most = scaling.min_replicas, scaling.max_replicas
            first = min(max(spec.replicas or 0, fewest), most)
        elif spec.replicas is None or self._keeps_more(running, spec.replicas):
            fewest = most = first = running
        else:
            fewest = most = first = spec.replicas
        annotations = {}
        if not scaling and spec.replicas is not None and first > spec.replicas:
            annotations = {KEPT_ANNOTATION: str(spec.replicas)}
        stable = _Track(
            name=self._name,
            labels=self._labels("stable"),
            model=self._model(spec.model, spec.image),
            image=spec.image or self._settings.serving_image,
            args=spec.args,
            args_field="spec.args",
            fewest=fewest,
            most=most,
            first=first,
            annotations=annotations,
        )
        canary = spec.canary
        return [stable] if canary is None else [stable, self._canary_track(canary, stable, running)]

    def _canary_track(self, canary: api.Canary, stable: _Track, running: int) -> _Track:
        """Returns the canary. By default it has the replicas for its share of the requests."""
        spec = self._spec
        image = canary.image or spec.image
        fewest = most = first = canary.replicas or _share_of(stable.fewest, canary.weight)
        if self._autoscaling:
            most = max(fewest, _share_of(stable.most, canary.weight))
            first = canary.replicas or _share_of(max(running, stable.first), canary.weight)
            first = min(max(first, fewest), most)
        return _Track(
            name=self._canary,
            labels=self._labels("canary"),
            model=self._model(canary.model or spec.model, image),
            image=image or self._settings.serving_image,
            args=spec.args if canary.args is None else canary.args,
            args_field="spec.args" if canary.args is None else "spec.canary.args",
            fewest=fewest,
            most=most,
            first=first,
        )

    def _keeps_more(self, running: int, replicas: int) -> bool:
        """Returns True if more pods than `spec.replicas` stay, as autoscaling has left them."""
        live = self._live.get((DEPLOYMENT, self._name), {"metadata": {}})
        kept_replicas = live["metadata"].get("annotations", {}).get(KEPT_ANNOTATION)
        scalers = (self._live.get((kind, self._name)) for kind in (AUTOSCALER, SCALED_OBJECT))
        is_scaled = any(scaler is not None and self._is_ours(scaler) for scaler in scalers)
        return running > replicas and (is_scaled or kept_replicas == str(replicas))

    def _labels(self, track: str) -> dict[str, str]:
        return {INSTANCE: self._name, f"{api.GROUP}/track": track}

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

    def _plan_track(self, track: _Track, regional_template: Object | None) -> None:
        """Plans the Service, the Deployment, its scaler and its budget."""
        rollout = self._spec.rollout or api.Rollout()
        check_arguments(track.args, track.args_field)
        templates = {"spec.template": self._spec.template}
        if regional_template:
            templates["the region's template"] = regional_template
        template = make_pod_template(
            self._name,
            track.labels,
            track.model,
            track.image,
            track.args,
            self._spec,
            templates,
        )
        ports: list[Object] = [
            {"name": port, "port": number, "targetPort": port} for port, number in PORTS.items()
        ]
        ports[list(PORTS).index("grpc")]["appProtocol"] = "kubernetes.io/h2c"
        self._apply(SERVICE, track.name, track.labels, {"selector": track.labels, "ports": ports})
        strategy = {"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable}
        deployment = {
            "selector": {"matchLabels": track.labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": strategy},
            "progressDeadlineSeconds": rollout.start_seconds + _ROLLOUT_MARGIN_SECONDS,
            "template": template,
        }
        self._apply(DEPLOYMENT, track.name, track.labels, deployment, track.annotations)
        self._plan_replicas(track)
        if track.most > 1:
            budget = {
                "maxUnavailable": 1,
                "selector": {"matchLabels": track.labels},
                # A pod that is not ready must not hold up the drain of its node.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            }
            self._apply(DISRUPTION_BUDGET, track.name, track.labels, budget)

    def _plan_replicas(self, track: _Track) -> None:
        scaling = self._autoscaling
        if scaling is None:  # The scaler is deleted later, when the replicas have an owner.
            self._scale(track)
            return
        live = self._live.get((DEPLOYMENT, track.name), {})
        owners = owners_of_replicas(live)
        is_off = track.fewest and SCALE_MANAGER in owners and live["spec"]["replicas"] == 0
        # The Deployment is new, and nobody has set its replicas. Or the operator itself has set 0,
        # at which an autoscaler does nothing.
        if not owners or is_off:
            self._scale(track)
        kind, body = make_scaler(track.name, self._namespace, scaling, track.fewest, track.most)
        # Two scalers would work against each other, so the other one goes first.
        self._delete(SCALED_OBJECT if kind is AUTOSCALER else AUTOSCALER, track.name)
        self._apply(kind, track.name, track.labels, body)

    def _promotes(self, stable: _Track) -> bool:
        """Returns True if a removed canary still serves while new pods of the stable version start.

        In the pass that first sees a change, the live status is that of the rollout before: then
        the answer is True.
        """
        canary = self._live.get((DEPLOYMENT, self._canary))
        if self._spec.canary or canary is None or not self._is_ours(canary):
            return False
        if "deletionTimestamp" in canary["metadata"]:
            return False
        conditions = {
            condition["type"]: condition["status"]
            for condition in self._status.get("conditions", [])
        }
        is_seen = self._status.get("observedGeneration") == self._metadata.get("generation")
        if not is_seen or conditions.get("Stalled") != "False":
            return True
        child = self._live.get((DEPLOYMENT, self._name), {})
        return rollout_waits_for(child, stable.fewest) is not None

    def _plan_routes(self, route: Route, region: Region | None, weights: dict[str, int]) -> None:
        annotations = route_annotations(route, region)
        labels = self._labels("stable")
        model = (self._spec.model.name if self._spec.model else None) or self._name
        spec = make_http_route(route, model, weights)
        self._apply(HTTP_ROUTE, self._name, labels, spec, annotations)
        if route.grpc_hostnames:
            spec = make_grpc_route(route, weights)
            self._apply(GRPC_ROUTE, self._name, labels, spec, annotations)

    def _scale(self, track: _Track) -> None:
        body = {
            "apiVersion": DEPLOYMENT.api_version,
            "kind": DEPLOYMENT.name,
            "metadata": {"name": track.name, "namespace": self._namespace},
            "spec": {"replicas": track.first},
        }
        self._steps.append(Apply(DEPLOYMENT, track.name, body, SCALE_MANAGER))

    def _apply(
        self,
        kind: Kind,
        name: str,
        labels: dict[str, str],
        spec: Object,
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        """Adds the step that applies a child. Raises `PlanError` if another owner has its name."""
        child = self._live.get((kind, name))
        if child is not None and not self._is_ours(child):
            adopted = " ".join(f"{key}={value}" for key, value in self._marks.items())
            raise PlanError(
                "NameTaken",
                f"The {kind.name} {name!r} exists and belongs to something else. Delete it, "
                "or give this object another name. If it has no owner, adopt it: "
                f"kubectl label {kind.name.lower()} {name} --overwrite {adopted}",
            )
        if self._settings.region:
            annotations = {REGION_ANNOTATION: self._settings.region, **(annotations or {})}
        owner = {
            "apiVersion": MODEL_DEPLOYMENT.api_version,
            "kind": MODEL_DEPLOYMENT.name,
            "name": self._name,
            "uid": self._metadata["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        metadata = {
            "name": name,
            "namespace": self._namespace,
            "labels": {**MANAGED, **labels},
            "ownerReferences": [owner],
            **({"annotations": annotations} if annotations else {}),
        }
        body = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata}
        self._steps.append(Apply(kind, name, {**body, "spec": spec}))

    def _delete(self, kind: Kind, name: str) -> None:
        child = self._live.get((kind, name))
        if child is None or not self._is_ours(child):
            return
        if "deletionTimestamp" not in child["metadata"]:
            self._steps.append(Delete(kind, name, child["metadata"]["uid"]))

    def _delete_unwanted(self, *, keeps_canary: bool = False) -> None:
        """Deletes the children that no step applies."""
        named = {(step.kind, step.name) for step in self._steps}
        for kind in CHILDREN:
            for name in child_names(self._name):
                is_kept = keeps_canary and name == self._canary
                # Gateways may send requests until the last pod has left.
                is_kept |= kind is SERVICE and (DEPLOYMENT, name) in self._live
                if (kind, name) not in named and not is_kept:
                    self._delete(kind, name)

    def _is_ours(self, child: Object) -> bool:
        """Returns True if this object owns a child, or the child has no owner and our labels."""
        if owners := child["metadata"].get("ownerReferences"):
            return any(owner["uid"] == self._metadata["uid"] for owner in owners)
        # A child has no owner after `kubectl delete --cascade=orphan` of an object of this name.
        labels: dict[str, str] = child["metadata"].get("labels", {})
        return self._marks.items() <= labels.items()

    @property
    def _marks(self) -> dict[str, str]:
        return {**MANAGED, INSTANCE: self._name}


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
        entry["manager"]
        for entry in fields
        if "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
    }


def _share_of(replicas: int, weight: int) -> int:
    """Returns the replicas for a percentage of the requests, at the same load for each pod."""
    return max(1, -(-replicas * weight // 100))
