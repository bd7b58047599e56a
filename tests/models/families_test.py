import pytest

from keras_deepseek import models
from keras_deepseek.chat.chat_style import STYLES
from keras_deepseek.deploy.routes.config_check import check_configs
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.families import FAMILIES


def find_tasks(family):
    exported = [getattr(models, name) for name in models.__all__]
    tasks = [task for task in exported if isinstance(task, type) and issubclass(task, PresetModel)]
    return [task for task in tasks if task.architectures == family.architectures]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architectures[0])
def test_config_and_task_of_a_family_are_exported_and_derive_from_it(family):
    (task,) = find_tasks(family)
    config_class = task.config_class
    assert config_class.family is family
    assert config_class.presets is family.presets
    assert config_class.__name__ in models.__all__
    written = config_class.from_preset("tiny", **open_values(config_class)).to_checkpoint_config()
    if family.model_type is not None:
        assert written["model_type"] == family.model_type
        assert written["architectures"] == [family.architectures[0]]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architectures[0])
def test_every_layer_of_a_family_can_be_made_again_by_an_export(family):
    (task,) = find_tasks(family)
    config_class = task.config_class
    config = config_class.from_preset("tiny", **open_values(config_class))
    check_configs(task(config, dtype="mixed_bfloat16"))


def test_a_message_format_belongs_to_a_family():
    model_types = {family.model_type for family in FAMILIES}
    assert {style.model_type for style in STYLES.values()} <= {*model_types, None}


def open_values(config_class):
    required = {"num_classes": 10, "num_items": 20}
    return {name: x for name, x in required.items() if name in config_class.__dataclass_fields__}


def test_every_exported_task_belongs_to_a_family():
    names = {task.__name__ for family in FAMILIES for task in find_tasks(family)}
    exported = [getattr(models, name) for name in models.__all__]
    tasks = [task for task in exported if isinstance(task, type) and issubclass(task, PresetModel)]
    assert {task.__name__ for task in tasks if task.architectures} == names
