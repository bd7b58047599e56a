import numpy as np

from keras_deepseek.models.lora.adapted_layers import find_adapted, kernel_of, path_of
from keras_deepseek.models.lora.peft_modules import PeftEmbedding, PeftLinear, find_modules
from keras_deepseek.testing import assert_close
from tests.oracles.language_models import to_numpy
from tests.oracles.lora_models import make_model, tune


def modules_of(model):
    return find_modules(model, {id(kernel_of(layer)): layer for layer in find_adapted(model)})


def test_modules_are_those_that_have_a_lora_by_the_names_of_transformers():
    model = tune(make_model(), target_names=["token_embedding", "key_up", "output"])
    modules = modules_of(model)
    assert {name: type(module) for name, module in modules.items()} == {
        "model.embed_tokens": PeftEmbedding,
        **{f"model.layers.{index}.self_attn.kv_b_proj": PeftLinear for index in (0, 1)},
        **{f"model.layers.{index}.self_attn.o_proj": PeftLinear for index in (0, 1)},
    }
    of_heads = modules["model.layers.0.self_attn.kv_b_proj"]
    assert [None if x is None else x.name for x in of_heads.layers] == ["key_up", None]


def test_the_table_of_tied_logits_is_none_of_them():
    model = tune(make_model(tie_word_embeddings=True), target_names=["token_embedding"])
    assert modules_of(model) == {}


def test_what_is_joined_is_split_again():
    model = tune(make_model(), target_names=["token_embedding", "value_up", "gate"])
    for module in modules_of(model).values():
        down, up = module.join()
        parts = module.split(down, up, module.scale, is_enabled=True)
        layers = [layer for layer in module.layers if layer is not None]
        assert list(parts) == [path_of(layer) for layer in layers]
        for layer, part in zip(layers, parts.values(), strict=True):
            assert np.isclose(part.lora_alpha / part.rank, layer.lora_alpha / layer.lora_rank)
            added = to_numpy(kernel_of(layer)) * 0 + part.a @ part.b * module.scale
            name = "embeddings" if layer.name == "token_embedding" else "kernel"
            changed = to_numpy(getattr(layer, name)) - to_numpy(kernel_of(layer))
            assert_close(changed, added, 1e-5)
