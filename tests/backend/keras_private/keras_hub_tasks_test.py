"""Canaries: they fail when KerasHub moves a private name."""

import numpy as np
import pytest

from keras_deepseek.backend.keras_private.keras_hub_tasks import fill_cache

keras_hub = pytest.importorskip("keras_hub", reason="tox -e examples has it.")


def test_a_task_fills_a_cache_by_a_function_of_its_own():
    backbone = keras_hub.models.GPT2Backbone(10, 1, 2, 4, 8, max_sequence_length=6)
    task = keras_hub.models.GPT2CausalLM(backbone=backbone)
    assert tuple(fill_cache(task, np.ones((1, 5), "int32")).shape) == (1, 1, 2, 5, 2, 2)
