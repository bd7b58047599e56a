"""
Title: Models on Kubernetes: render, size and plan
Author: The keras_deepseek authors
Date created: 2026/11/29
Last modified: 2026/11/30
Description: A ModelDeployment, what it becomes, and a target that keeps 99.9 % of requests.
Time: 1 minute on two cores
Install: "keras_deepseek[operator,pictures]"
"""

"""
The operator runs exported models on Kubernetes. You describe a model in one object, a
`ModelDeployment`; it makes the pods, the service and the autoscaler. This guide needs no cluster:
you choose the numbers, write the object, and look at what the operator would make of it.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import yaml

from keras_deepseek.operator import ModelDeployment

folder = Path(tempfile.mkdtemp(prefix="operator_"))


def operator(*arguments):
    """Runs `keras-deepseek operator` and returns what it prints."""
    command = [sys.executable, "-m", "keras_deepseek", "operator", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


"""
## How many requests may a pod get?

While a new pod starts, the others must carry the growing load, so each needs headroom. How much
depends on the traffic and on how long a pod takes to start. `size` plays days of traffic through
the algorithm of Kubernetes's autoscaler, and returns the highest target that answers 99.9 % of the
requests. Here a pod answers 1000 a second. For a server of your own, `--url` measures that number.
"""

targets = {}
for seconds in (20, 60, 120, 240):
    sizes = operator("size", "--capacity", "1000", "--cold-start", str(seconds))
    for traffic, target in re.findall(r"^([\w-]+): target (\d+) requests/s", sizes, re.MULTILINE):
        targets.setdefault(traffic, {})[seconds] = int(target)
print(sizes)
print(targets)

"""
## The object

These pods need two minutes to start, and the traffic has bursts. Python checks the object as the
API server does: `minReplicas: 12` with `maxReplicas: 10` would be refused here, too.
"""

metrics = [{"type": "RequestsPerSecond", "target": targets["bursty"][120]}]
autoscaling = {"minReplicas": 2, "maxReplicas": 10, "metrics": metrics}
spec = {"model": {"uri": "s3://models/digits"}, "autoscaling": autoscaling}
deployment = ModelDeployment.model_validate({"metadata": {"name": "digits"}, "spec": spec})
body = deployment.model_dump(by_alias=True, exclude_unset=True, exclude={"status"})
kinds = {"apiVersion": deployment.api_version, "kind": deployment.kind}
(folder / "digits.yaml").write_text(yaml.safe_dump({**kinds, **body}))

"""
## What it becomes

`render` prints the objects that the operator would make in an empty cluster. No cluster is needed.
In a cluster, `kubectl apply -f digits.yaml` is all: the operator does the rest.
"""

rendered = operator("render", "-f", str(folder / "digits.yaml"))
objects = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(rendered)}
print(*objects)
(metric,) = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
print(metric["pods"])

"""
## The picture

The longer a pod starts and the steeper the traffic, the lower the target. A smaller image and a
model that loads fast save pods.
"""

figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
for traffic, target_by_seconds in targets.items():
    axis.plot(target_by_seconds.keys(), target_by_seconds.values(), "o-", label=traffic)
axis.set(xlabel="seconds until a pod answers", ylabel="target, requests per second", ylim=(0, 1050))
axis.legend(title="traffic")
figure.savefig("operator.png")
print(f"see {folder}")
assert targets["bursty"][20] > targets["bursty"][240]
assert metric["pods"]["target"]["averageValue"] == str(targets["bursty"][120])
