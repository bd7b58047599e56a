"""The status, in kstatus's words."""

from datetime import UTC, datetime

import pytest

from keras_deepseek.operator.kinds import AUTOSCALER, DEPLOYMENT, HTTP_ROUTE, SCALED_OBJECT
from keras_deepseek.operator.plan import KEPT_ANNOTATION, Plan
from keras_deepseek.operator.problems import Problem
from keras_deepseek.operator.status import make_status

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = datetime(2026, 1, 1, 13, tzinfo=UTC)


def child(replicas=3, updated=3, available=3, conditions=()):
    status = {"replicas": replicas, "updatedReplicas": updated, "readyReplicas": available}
    status |= {"availableReplicas": available, "observedGeneration": 1}
    return {
        "metadata": {"generation": 1},
        "spec": {"selector": {"matchLabels": {"a": "b"}}},
        "status": {**status, "conditions": list(conditions)},
    }


def conditions(status):
    return {
        condition["type"]: (condition["status"], condition["message"])
        for condition in status["conditions"]
    }


def status(deployment, child_deployment=None, plan=None, **arguments):
    plan = plan or Plan(fewest_replicas={"digits": 2})
    live = {} if child_deployment is None else {(DEPLOYMENT, "digits"): child_deployment}
    return make_status(deployment, plan, live | arguments.pop("live", {}), now=NOON, **arguments)


def test_ready(deployment):
    object_status = status(deployment(), child(), region="eu")
    assert conditions(object_status)["Ready"] == ("True", "3 replicas are ready.")
    assert conditions(object_status)["Reconciling"][0] == "False"
    assert (
        object_status["replicas"],
        object_status["readyReplicas"],
        object_status["selector"],
    ) == (3, 3, "a=b")
    assert object_status["region"] == "eu"
    assert object_status["observedGeneration"] == 1


def test_more_replicas_than_the_fewest_may_still_start(deployment):
    object_status = status(deployment(), child(replicas=10, updated=10, available=2))
    assert conditions(object_status)["Ready"][0] == "True"


def test_rollout_is_reconciling(deployment):
    by_type = conditions(status(deployment(), child(updated=1)))
    assert by_type["Ready"] == ("False", "2 pods of the old version still run")
    assert by_type["Reconciling"][0] == "True"
    assert by_type["Stalled"][0] == "False"
    by_type = conditions(status(deployment(), child(available=1)))
    assert by_type["Ready"] == ("False", "1 of 2 pods are available")


def test_ready_stays_true_when_an_autoscaler_decides(deployment):
    """Until the Deployment controller has seen the new replicas."""
    scaled = child()
    scaled["metadata"]["generation"] = 2
    assert conditions(status(deployment(), scaled))["Ready"][0] == "False"
    ready = {**deployment(), "status": status(deployment(), child())}
    assert conditions(status(ready, scaled))["Ready"] == ("True", "3 replicas are ready.")
    ready["metadata"]["generation"] = 2
    assert conditions(status(ready, scaled))["Ready"][0] == "False"


def test_zero_pods_that_someone_set_under_an_autoscaler_are_stalled(deployment):
    zero = child(0, 0, 0)
    zero["spec"]["replicas"] = 0
    is_stalled, message = conditions(status(deployment(), zero))["Stalled"]
    assert is_stalled == "True"
    assert "kubectl scale deployments/digits --replicas=2" in message


def test_pods_that_were_kept_are_said(deployment):
    scaled = child()
    scaled["metadata"]["annotations"] = {KEPT_ANNOTATION: "2"}
    is_ready, message = conditions(status(deployment(), scaled))["Ready"]
    assert is_ready == "True"
    assert message.startswith(
        "3 replicas are ready. Autoscaling left them, above spec.replicas (2)"
    )


def test_line_of_serve_reaches_the_condition(deployment):
    crashed = {
        "status": {
            "containerStatuses": [
                {
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                    "lastState": {"terminated": {"message": "x\nserve: error: no such bundle\n"}},
                }
            ]
        }
    }
    unscheduled = {
        "status": {
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "no GPU",
                }
            ]
        }
    }
    object_status = status(deployment(), child(available=0), pods=[crashed, crashed, unscheduled])
    message = conditions(object_status)["Ready"][1]
    assert message.count("CrashLoopBackOff: serve: error: no such bundle") == 1
    assert "Unschedulable: no GPU" in message


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        ("CreateContainerConfigError", 'secret "s3" not found', 'secret "s3" not found'),
        ("ImagePullBackOff", "model@sha256:0 not found", "model@sha256:0 not found"),
        (
            "CrashLoopBackOff",
            "usage: serve\nserve: error: unrecognized arguments: --admin-port 8502",
            "--admin-port 8502. Use a serving image as new as the operator",
        ),
    ],
)
def test_error_of_a_container_says_what_to_do(deployment, reason, message, expected):
    container = {"state": {"waiting": {"reason": reason, "message": message}}}
    pod = {"status": {"containerStatuses": [container]}}
    object_status = status(deployment(), child(available=0), pods=[pod])
    assert f"{reason}: " in conditions(object_status)["Ready"][1]
    assert expected in conditions(object_status)["Ready"][1]


def test_problem_and_failure_are_stalled(deployment):
    for arguments in (
        {"plan": Plan(problem=Problem("NameTaken", "no"))},
        {"failure": Problem("Invalid", "no")},
    ):
        by_type = conditions(status(deployment(), child(), **arguments))
        assert by_type["Stalled"] == ("True", "no")
        assert by_type["Ready"][0] == "False"


def test_rollout_that_takes_too_long_is_stalled(deployment):
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    object_status = status(deployment(), child(conditions=[{**late, "message": "timed out."}]))
    assert conditions(object_status)["Stalled"] == ("True", "timed out.")


def test_unlisted_region_is_ready(deployment):
    by_type = conditions(status(deployment(), plan=Plan(notice="nothing runs here.")))
    assert by_type["Ready"] == ("True", "nothing runs here.")


def test_conditions_of_the_autoscaler_are_handed_on(deployment):
    limited = {"type": "ScalingLimited", "status": "True", "reason": "TooMany", "message": "max"}
    able = {**limited, "type": "AbleToScale"}
    for name in ("digits", "keda-digits"):
        live = {(AUTOSCALER, name): {"status": {"conditions": [limited, able]}}}
        by_type = conditions(status(deployment(), child(), live=live))
        assert by_type["ScalingLimited"] == ("True", "max")
        assert "AbleToScale" not in by_type


def test_canary_counts(deployment):
    plan = Plan(fewest_replicas={"digits": 2, "digits-canary": 1})

    def ready(canary):
        live = {(DEPLOYMENT, "digits-canary"): canary}
        return conditions(status(deployment(), child(), plan=plan, live=live))

    assert ready(child(1, 1, 1))["Ready"][0] == "True"
    by_type = ready(child(1, 1, 0))
    assert by_type["Ready"] == ("False", "The canary 'digits-canary': 0 of 1 pods are available")
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    by_type = ready(child(1, 1, 0, [{**late, "message": "timed out."}]))
    assert by_type["Stalled"] == ("True", "The canary 'digits-canary': timed out.")


def test_route_that_the_gateway_refuses_is_stalled(deployment):
    refused = {"type": "Accepted", "status": "False", "reason": "NotAllowed", "message": "no."}
    route = {"status": {"parents": [{"conditions": [refused]}]}}
    object_status = status(deployment(), child(), live={(HTTP_ROUTE, "digits"): route})
    message = "The Gateway refuses the HTTPRoute 'digits': NotAllowed: no."
    assert conditions(object_status)["Stalled"] == ("True", message)


@pytest.mark.parametrize(
    ("kind", "condition", "message"),
    [
        (SCALED_OBJECT, {"type": "Ready", "reason": "Bad", "message": "no trigger"}, "no trigger"),
        (
            AUTOSCALER,
            {"type": "ScalingActive", "reason": "FailedGetPodsMetric", "message": "no metric"},
            "no metric. Install prometheus-adapter",
        ),
        (
            AUTOSCALER,
            {"type": "ScalingActive", "reason": "FailedGetResourceMetric"},
            "Set spec.resources.requests.cpu",
        ),
    ],
)
def test_scaling_that_does_not_work_is_said(deployment, kind, condition, message):
    child_status = {"conditions": [{**condition, "status": "False"}]}
    by_type = conditions(
        status(deployment(), child(), live={(kind, "digits"): {"status": child_status}})
    )
    assert by_type["ScalingActive"][0] == "False"
    assert message in by_type["ScalingActive"][1]
    assert by_type["Ready"][1].startswith("3 replicas are ready. Autoscaling does not work: ")
    assert message in by_type["Ready"][1]


def test_autoscaler_at_zero_replicas_works(deployment):
    disabled = {"type": "ScalingActive", "status": "False", "reason": "ScalingDisabled"}
    live = {(AUTOSCALER, "keda-digits"): {"status": {"conditions": [disabled]}}}
    plan = Plan(fewest_replicas={"digits": 0})
    by_type = conditions(status(deployment(), child(0, 0, 0), plan=plan, live=live))
    assert by_type["Ready"] == ("True", "0 replicas are ready.")


def test_killed_for_memory_is_said(deployment):
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off"}
    ended = {"reason": "OOMKilled", "exitCode": 137}
    container = {"state": {"waiting": waiting}, "lastState": {"terminated": ended}}
    for part in ("containerStatuses", "initContainerStatuses"):
        pods = [{"status": {part: [container]}}]
        message = conditions(status(deployment(), child(available=0), pods=pods))["Ready"][1]
        assert "CrashLoopBackOff: OOMKilled: " in message
        assert "raise spec.resources.limits.memory (exit code 137)" in message
    container["state"] = {"running": {}}
    message = conditions(status(deployment(), child(available=0), pods=pods))["Ready"][1]
    assert "; OOMKilled: " in message


def test_time_of_a_transition_is_kept(deployment):
    old_status = status(deployment(), child())
    again = {**deployment(), "status": old_status}
    live = {(DEPLOYMENT, "digits"): child()}
    assert make_status(again, Plan(fewest_replicas={"digits": 2}), live, now=LATER) == old_status
    live = {(DEPLOYMENT, "digits"): child(available=0)}
    new_status = make_status(again, Plan(fewest_replicas={"digits": 2}), live, now=LATER)
    times = {
        condition["type"]: condition["lastTransitionTime"] for condition in new_status["conditions"]
    }
    assert times["Ready"] == "2026-01-01T13:00:00Z"
    assert times["Stalled"] == "2026-01-01T12:00:00Z"
