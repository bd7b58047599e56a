"""
Title: Models on Kubernetes: render, size and plan
Author: The keras_deepseek authors
Date created: 2026/11/29
Last modified: 2026/11/29
Description: A ModelDeployment, what it becomes, and a target that keeps 99.9 % of requests.
Time: 1 minute on two cores
Install: "keras_deepseek[operator,pictures]"
"""

import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import yaml

from keras_deepseek.operator import ModelDeployment

OPERATOR = [sys.executable, "-m", "keras_deepseek", "operator"]

"""
## How many requests may a pod get?

`size` plays days of traffic through the algorithm of Kubernetes's autoscaler. It takes what a pod
answers, and how long one takes to start; with `--url` it measures a running server. The longer the
start, the more headroom is needed.
"""

for seconds in ("20", "120"):
    size = [*OPERATOR, "size", "--capacity", "1000", "--cold-start", seconds, "--traffic", "bursty"]
    print(subprocess.run(size, check=True, capture_output=True, text=True).stdout)

"""
## The object

A pod that answers 1000 requests per second and needs two minutes to start gets the target 600, as
the second table says. Python checks the object as the API server does: `minReplicas: 12` would be
refused here, too.
"""

metrics = [{"type": "RequestsPerSecond", "target": 600}]
autoscaling = {"minReplicas": 2, "maxReplicas": 10, "metrics": metrics}
spec = {"model": {"uri": "s3://models/digits"}, "autoscaling": autoscaling}
deployment = ModelDeployment.model_validate({"metadata": {"name": "digits"}, "spec": spec})
body = deployment.model_dump(by_alias=True, exclude_unset=True, exclude={"status"})
kinds = {"apiVersion": deployment.api_version, "kind": deployment.kind}
Path("digits.yaml").write_text(yaml.safe_dump({**kinds, **body}))

"""
## What it becomes

`render` prints the objects that the operator would make in an empty cluster. No cluster is needed.
In a cluster, `kubectl apply -f digits.yaml` is all: the operator does the rest.
"""

render = [*OPERATOR, "render", "-f", "digits.yaml"]
text = subprocess.run(render, check=True, capture_output=True, text=True).stdout
objects = {found["kind"]: found for found in yaml.safe_load_all(text)}
print(*objects)
(metric,) = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
print(metric["pods"])
requests = np.arange(8000)
plt.plot(requests, np.clip(np.ceil(requests / 600), 2, 10))
plt.xlabel("requests per second")
plt.ylabel("pods")
plt.savefig("pods.png")
assert metric["pods"]["target"]["averageValue"] == "600"
