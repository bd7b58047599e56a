"""Claim: with orjson a body of 150,000 floats is read and written three times as fast, or more.

What a server does between the bytes of a request and checked arrays, and between arrays and the
bytes of an answer: with Python's `json`, with orjson, and as raw bytes over REST and gRPC. msgspec,
which could stand in orjson's place, is measured by itself where it is installed. Prints a table and
writes the numbers as JSON:

    python benchmarks/request_bodies.py [--json RESULT.json]
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
from processes import make_parser
from result import Figure, report

from keras_deepseek.artifacts import Signature, TensorSpec
from keras_deepseek.inference.protocols import (
    json_text,
    open_inference,
    tf_serving,
    tf_serving_grpc,
)
from keras_deepseek.inference.protocols.grpc_messages import new_message
from keras_deepseek.inference.protocols.open_inference import InferCall, RequestedOutput
from keras_deepseek.inference.protocols.tensor_proto import to_tensor_proto

RUNS = 21
LEAST = 3.0
ARRAY = np.random.default_rng(0).normal(size=(150, 1000)).astype("float32")
SIGNATURE = Signature((TensorSpec("x", (None, 1000), "float32"),), ())
SMALL = Signature((TensorSpec("x", (None, 2), "float32"),), ())
Milliseconds = dict[str, float]


def best(function: Callable[[], Any], repeats: int = 1) -> float:
    """Returns the least milliseconds of a call: other load on the machine only adds to it."""
    function()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        seconds.append((time.perf_counter() - start) / repeats)
    return 1000 * min(seconds)


def measure_json() -> Milliseconds:
    """Returns what the parser that is chosen takes for TF Serving's rows."""
    large = json.dumps({"instances": ARRAY.tolist()}).encode()
    small = b'{"instances": [[1.5, 2.5]]}'
    return {
        "read": best(lambda: SIGNATURE.bind(tf_serving.parse_predict(large, SIGNATURE).inputs)),
        "write": best(lambda: tf_serving.encode_outputs({"y": ARRAY}, is_row_form=True)),
        "read a small one": best(lambda: tf_serving.parse_predict(small, SMALL), 1000),
    }


def measure_raw_rest() -> Milliseconds:
    """Returns what Open Inference's binary tensor extension takes."""
    call = InferCall({}, (RequestedOutput("x", is_binary=True),))
    answer, length = open_inference.encode_infer(call, {"x": ARRAY}, "m", "1")
    text = json.dumps({"inputs": json.loads(answer[:length])["outputs"]}).encode()
    body = text + answer[length:]
    return {
        "read": best(lambda: open_inference.parse_infer(body, str(len(text)))),
        "write": best(lambda: open_inference.encode_infer(call, {"x": ARRAY}, "m", "1")),
    }


def measure_raw_grpc() -> Milliseconds:
    """Returns what TF Serving's `Predict` takes."""
    request = new_message("tensorflow.serving.PredictRequest")
    request.inputs["x"].CopyFrom(to_tensor_proto(ARRAY))
    data = request.SerializeToString()
    call = tf_serving_grpc.parse_predict(data)
    return {
        "read": best(lambda: tf_serving_grpc.parse_predict(data)),
        "write": best(lambda: tf_serving_grpc.format_predict(call, {"y": ARRAY}, 1)),
    }


def measure_msgspec() -> Milliseconds:
    """Returns what msgspec takes, whose writer wants lists."""
    try:
        import msgspec
    except ImportError:
        return {}
    body = json.dumps({"instances": ARRAY.tolist()}).encode()
    small = b'{"instances": [[1.5, 2.5]]}'
    return {
        "read": best(lambda: np.asarray(msgspec.json.decode(body)["instances"], "float32")),
        "write": best(lambda: msgspec.json.encode({"predictions": ARRAY.tolist()})),
        "read a small one": best(lambda: msgspec.json.decode(small), 1000),
    }


def main() -> int:
    arguments = make_parser(__doc__, has_quick=False, rounds=None).parse_args()
    with mock.patch.object(json_text, "_orjson", return_value=None):
        results = {"json": measure_json()}
    results["orjson"] = measure_json()
    results["msgspec alone"] = measure_msgspec()
    results["raw bytes, REST"] = measure_raw_rest()
    results["raw bytes, gRPC"] = measure_raw_grpc()
    columns = ("read", "write", "read a small one")
    print(f"{'milliseconds':18}" + "".join(f"{column:>18}" for column in columns))
    for name, row in results.items():
        cells = (f"{row[column]:>18.4f}" if column in row else f"{'-':>18}" for column in columns)
        print(f"{name:18}" + "".join(cells))
    figures = [
        Figure(
            f"{column}, {name}",
            results[name][column],
            "ms",
            peer="Python's json",
            theirs=results["json"][column],
            target=LEAST if name == "orjson" and column in ("read", "write") else None,
        )
        for name in ("orjson", "raw bytes, REST", "raw bytes, gRPC")
        for column in columns
        if column in results[name]
    ]
    return report(arguments.json, figures, results)


if __name__ == "__main__":
    sys.exit(main())
