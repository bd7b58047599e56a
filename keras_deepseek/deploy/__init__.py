"""Export of a Keras model to a deployable artifact whose outputs are verified.

Importing this package loads no Keras, so that the command line can read `formats/format_list.py`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_deepseek.deploy.export_job import ExportReport
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
_MODULES = {
    "ExportFormat": "formats.export_format",
    "ExportReport": "export_job",
    "Exporter": "exporter",
    "Latency": "latencies",
    "LatencyTable": "latencies",
    "compare_latencies": "latencies",
    "register_exporter": "formats.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from keras_deepseek.backend import installed_keras  # noqa: F401 - Its error comes first.

    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
