"""Export: from a Keras model to a verified artifact."""

from keras_deepseek.backend import installed_keras  # noqa: F401 - Its error comes first.
from keras_deepseek.deploy.export_report import ExportReport
from keras_deepseek.deploy.exporter import Exporter
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.formats.registry import register_exporter
from keras_deepseek.deploy.latencies import Latency, LatencyTable, compare_latencies

__all__ = [
    "ExportFormat",
    "ExportReport",
    "Exporter",
    "Latency",
    "LatencyTable",
    "compare_latencies",
    "register_exporter",
]
