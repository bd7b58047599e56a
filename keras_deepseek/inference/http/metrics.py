"""The paths for Prometheus: `/metrics`, and TF Serving's `/monitoring/prometheus/metrics`."""

from typing import TYPE_CHECKING

from keras_deepseek.inference.http.message import HttpRequest, HttpResponse
from keras_deepseek.inference.http.operation import TEXT as TEXT_SCHEMA
from keras_deepseek.inference.http.operation import Operation
from keras_deepseek.inference.http.routing import Parameters, Route
from keras_deepseek.inference.monitoring.metrics import collect_metrics
from keras_deepseek.inference.monitoring.prometheus import OPEN_METRICS, TEXT, write_metrics

if TYPE_CHECKING:
    from keras_deepseek.inference.http.http_server import HttpServer


def metrics(server: "HttpServer", request: HttpRequest, _parameters: Parameters) -> HttpResponse:
    """Answers with all metrics, as OpenMetrics if the client accepts it, else as plain text."""
    is_open = "application/openmetrics-text" in request.headers.get("accept", "")
    body = write_metrics(collect_metrics(server.engine), open_metrics=is_open)
    return HttpResponse(200, body, OPEN_METRICS if is_open else TEXT)


_OPERATION = Operation(
    "Metrics for Prometheus",
    TEXT_SCHEMA,
    "text/plain",
    other_answers={"application/openmetrics-text": TEXT_SCHEMA},
)

ROUTES = tuple(
    Route("GET", path, metrics, call="metrics", operation=_OPERATION)
    for path in ("/metrics", "/monitoring/prometheus/metrics")
)
