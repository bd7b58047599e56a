"""All of the examples."""

from example_tests.keras_io import (
    adversarial,
    generative,
    image_classification,
    metric_learning,
    tabular,
    text,
    timeseries,
    translation,
    vision,
)

MODULES = (
    image_classification, vision, metric_learning, text, translation, tabular, timeseries,
    generative, adversarial,
)  # fmt: skip
EXAMPLES = sorted(
    (example for module in MODULES for example in module.EXAMPLES),
    key=lambda example: example.path,
)
