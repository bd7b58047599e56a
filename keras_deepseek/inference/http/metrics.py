"""The paths that are scraped: `/metrics`, and TF Serving's `/monitoring/prometheus/metrics`."""

import re
from typing import TYPE_CHECKING

from keras_deepseek.inference.http.answers import Route
from keras_deepseek.inference.http.message import HttpRequest, HttpResponse
from keras_deepseek.inference.monitoring.metrics import collect_metrics
from keras_deepseek.inference.monitoring.prometheus import OPEN_METRICS, TEXT, write_metrics

if TYPE_CHECKING:
    from keras_deepseek.inference.http.http_server import HttpServer


def metrics(server: "HttpServer", request: HttpRequest, _match: re.Match[str]) -> HttpResponse:
    """Answers with all numbers: in OpenMetrics where the client takes it, else in Prometheus's."""
    is_open = "application/openmetrics-text" in request.headers.get("accept", "")
    body = write_metrics(collect_metrics(server.engine), open_metrics=is_open)
    return HttpResponse(200, body, OPEN_METRICS if is_open else TEXT)


ROUTES = (
    Route("GET", re.compile("/metrics"), metrics, call="metrics"),
    Route("GET", re.compile("/monitoring/prometheus/metrics"), metrics, call="metrics"),
)
