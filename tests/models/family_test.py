from keras_deepseek.models.family import Family


def test_a_family_of_no_other_library_needs_an_architecture_and_presets():
    family = Family(architectures=("Own",), presets={"tiny": {}})
    assert family.model_type is None
    assert not family.peft_adapts_experts
