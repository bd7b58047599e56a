"""The routes for Prometheus: `/metrics`, and TF Serving's `/monitoring/prometheus/metrics`."""

from typing import TYPE_CHECKING

from keras_deepseek.errors import MissingExtraError
from keras_deepseek.inference.http.message import HttpError, HttpRequest, HttpResponse
from keras_deepseek.inference.http.operation import TEXT as TEXT_SCHEMA
from keras_deepseek.inference.http.operation import Operation
from keras_deepseek.inference.http.routing import Parameters, Route

if TYPE_CHECKING:
    from keras_deepseek.inference.http.http_server import HttpServer


async def metrics(
    server: "HttpServer", request: HttpRequest, _parameters: Parameters
) -> HttpResponse:
    """Answers with all metrics: as OpenMetrics if the client accepts it, else as Prometheus's text.

    Answers 501 if `prometheus_client` is not installed. Other paths don't need it.
    """
    try:
        from keras_deepseek.inference.server.metrics import write_metrics
    except ImportError as error:
        missing = MissingExtraError("prometheus-client", "serving", "to answer scrapes")
        raise HttpError(501, str(missing)) from error
    is_open = "application/openmetrics-text" in request.headers.get("accept", "")
    body, content_type = write_metrics(server.engine, open_metrics=is_open)
    return HttpResponse(200, body, content_type)


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
