"""
Title: Serve models to many clients
Author: The keras_deepseek authors
Date created: 2026/11/30
Last modified: 2026/11/30
Description: Clients of TF Serving and Open Inference, new versions, any Python code, and batches.
Time: 20 seconds on two cores
Install: "keras_deepseek[grpc,onnx,pictures,serving,tensorflow]" scikit-learn
"""

"""
A served model answers many clients at once, and is replaced by a better one while they ask. This
guide does both on one machine. The servers listen on free ports that only this machine can reach,
and are closed at the end.
"""

import http.client
import json
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from keras_deepseek.artifacts import Signature, TensorSpec
from keras_deepseek.deploy import Exporter
from keras_deepseek.inference import Executor, ServingEngine

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = images.astype("float32") / 16
split = train_test_split(images, labels, random_state=0)
train_images, test_images, train_labels, test_labels = split

"""
## The first version

The model was trained for one epoch only. Its export is version 1 of the model `digits`: a folder
whose name is the number of the version. A server needs the files and ONNX Runtime, but no Keras.
"""

model = keras.Sequential(
    [
        keras.Input((64,), name="pixels"),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(10, activation="softmax", name="probabilities"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(train_images, train_labels, epochs=1, verbose=0)
folder = tempfile.mkdtemp(prefix="serving_")
Exporter(model, "onnx").export(f"{folder}/digits/1")

"""
## The server

The engine serves the newest version in the folder. Without a token nobody may load or unload a
model by a call; `model_control` allows it to those who have one.
"""

try:
    import grpc
    from grpc_reflection.v1alpha import proto_reflection_descriptor_database as reflection
except ImportError:
    grpc = None
    print("skipped gRPC: pip install 'keras_deepseek[grpc]'")

engine = ServingEngine(f"{folder}/digits", name="digits")
control = {"model_control": "explicit", "management_tokens": ["a-token"]}
server = engine.serve(http_port=0, grpc_port=0 if grpc else None, **control)
print([server.url for server in engine.servers])

"""
## A client of TF Serving

TF Serving's REST form takes rows as nested lists, and returns rows. A client that was written for
TF Serving needs another address, and no other change.
"""


def post(path, body, token=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{server.url}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        return json.loads(response.read() or "null")


print(post("/v1/models/digits:predict", {"instances": test_images[:1].tolist()}))

"""
## A client of Open Inference

Open Inference is the protocol of KServe and Triton. Each tensor has a name, a shape and a datatype,
and the answer says which version has computed it.
"""


def infer(images):
    tensor = {"name": "pixels", "shape": images.shape, "datatype": "FP32", "data": images.tolist()}
    answer = post("/v2/models/digits/infer", {"inputs": [tensor]})
    outputs = np.reshape(answer["outputs"][0]["data"], answer["outputs"][0]["shape"])
    return outputs, answer["model_version"]


first_outputs, first_version = infer(test_images)
np.testing.assert_allclose(first_outputs, model.predict(test_images, verbose=0), atol=1e-5)

"""
The same call over gRPC. The server describes its own calls, so that a client needs no generated
code: it asks for the messages, and fills one in.
"""

if grpc:
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    with grpc.insecure_channel(engine.servers[1].target) as channel:
        pool = DescriptorPool(reflection.ProtoReflectionDescriptorDatabase(channel))
        calls = pool.FindServiceByName("inference.GRPCInferenceService").methods_by_name
        kinds = calls["ModelInfer"].input_type, calls["ModelInfer"].output_type
        request_class, answer_class = map(GetMessageClass, kinds)
        request = request_class(model_name="digits", raw_input_contents=[test_images.tobytes()])
        request.inputs.add(name="pixels", shape=test_images.shape, datatype="FP32")
        send = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_class.SerializeToString,
            answer_class.FromString,
        )
        answer = np.frombuffer(send(request).raw_output_contents[0], "float32").reshape(-1, 10)
    np.testing.assert_allclose(answer, first_outputs, atol=1e-6)

"""
## A better version, while clients ask

The model learns on, and version 2 goes beside version 1. The engine looks into the folder once a
second and would find it; a call with the token loads it at once. The new version is loaded and warm
before it gets its first request, so that the clients notice nothing but better answers.
"""

model.fit(train_images, train_labels, epochs=20, verbose=0)
Exporter(model, "onnx").export(f"{folder}/digits/2")
post("/v2/repository/models/digits/load", {}, token="a-token")
second_outputs, second_version = infer(test_images)
accuracies = [np.mean(x.argmax(1) == test_labels) for x in (first_outputs, second_outputs)]
print(
    f"version {first_version}: {accuracies[0]:.3f}, version {second_version}: {accuracies[1]:.3f}"
)

"""
## Any Python code as a model

An executor is an object with a signature, and a `run` that computes a batch. Here it is a
classifier of scikit-learn. It gets the same protocols, limits and metrics as a Keras model.
"""


class NearestNeighbors(Executor):
    signature = Signature(
        inputs=(TensorSpec("pixels", (None, 64), "float32"),),
        outputs=(TensorSpec("probabilities", (None, 10), "float64"),),
    )

    def __init__(self):
        self.classifier = KNeighborsClassifier(4).fit(train_images, train_labels)

    def run(self, inputs):
        return {"probabilities": self.classifier.predict_proba(inputs["pixels"])}


engine.load(NearestNeighbors(), name="neighbors")

"""
## Many clients at once

Each client is a thread with a connection of its own. It sends one image, waits for the answer, and
sends the next. Requests that come while a batch is computed form the next batch. So nobody has to
choose a batch size: it grows with the load. `statistics` remembers the last batches, and why each
of them left the queue.
"""


def ask(images):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    answers = []
    for image in images:
        body = json.dumps({"instances": [image.tolist()]})
        connection.request("POST", "/v1/models/neighbors:predict", body)
        answers += json.loads(connection.getresponse().read())["predictions"]
    connection.close()
    return answers


num_clients, batch_sizes = (1, 2, 4, 8, 16, 32), []
for count in num_clients:
    num_old_batches = engine.statistics("neighbors").batches
    with ThreadPoolExecutor(count) as clients:
        answers = list(clients.map(ask, np.array_split(test_images, count)))
    stats = engine.statistics("neighbors")
    batch_sizes.append([batch.rows for batch in stats.decisions[num_old_batches - stats.batches :]])
    print(f"{count} clients: {np.mean(batch_sizes[-1]):.1f} rows a batch")
engine.close()

"""
## Look

Each box holds the middle half of the batches, the triangle is their mean. One client can't fill a
batch: it waits for its answer. Thirty-two clients share a batch of many rows, and each of them gets
its own answer.
"""

_, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.boxplot(batch_sizes, tick_labels=num_clients, showmeans=True)
axes.set(xlabel="clients", ylabel="rows in a batch", title="Batches grow with the load")
plt.savefig("batches.png")

print(f"{keras.backend.backend()}: accuracies {accuracies[0]:.3f}, {accuracies[1]:.3f}")
expected = NearestNeighbors().run({"pixels": test_images})["probabilities"]
np.testing.assert_allclose(np.concatenate(answers), expected)
assert (first_version, second_version) == ("1", "2")
assert accuracies[1] > max(0.95, accuracies[0])
assert max(batch_sizes[0]) == 1
assert np.mean(batch_sizes[-1]) > 2

"""
The page on serving has the other options of the engine: latency targets, padding, replicas in
processes of their own. `keras-deepseek serve` starts the same server from a terminal.
"""
