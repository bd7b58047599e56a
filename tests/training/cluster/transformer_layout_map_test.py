import math

import keras
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers import (
    ChunkedCrossEntropy,
    DeepSeekMoE,
    ExpertRouter,
    MultiHeadLatentAttention,
    RotaryEmbedding,
    SlidingWindowAttention,
    SwiGLU,
)
from keras_deepseek.training import transformer_layout_map


def make_mesh(*sizes, names=("batch", "model")):
    devices = [f"cpu:{i}" for i in range(math.prod(sizes))]
    return keras.distribution.DeviceMesh(sizes, list(names), devices)


def build(*layers):
    inputs = keras.Input((5,))
    x = keras.layers.Embedding(30, 16, name="table")(inputs)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def read(model, mesh, **arguments):
    """Returns the axes of the weights that are cut."""
    layout_map = transformer_layout_map(model, mesh, **arguments)
    assert layout_map.device_mesh is mesh
    paths = {variable.path for variable in model.variables}
    assert set(layout_map) <= paths
    return {path: tuple(layout_map[path].axes) for path in layout_map}


def test_attention_is_cut_by_heads_into_and_out_of_it():
    class SelfAttention(keras.layers.MultiHeadAttention):
        def call(self, x):
            return super().call(x, x)

        def build(self, shape):
            super().build(shape, shape)

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    layouts = read(build(SelfAttention(4, 8, name="attention")), make_mesh(1, 4))
    assert layouts == {
        "table/embeddings": (None, "model"),  # 30 rows don't divide by 4.
        **{f"attention/{name}/kernel": (None, "model", None) for name in ("query", "key", "value")},
        **{f"attention/{name}/bias": ("model", None) for name in ("query", "key", "value")},
        "attention/attention_output/kernel": ("model", None, None),
    }


def test_the_attention_layers_of_this_package_are_cut_by_heads_and_groups():
    latent = MultiHeadLatentAttention(
        num_heads=4,
        key_value_lora_rank=8,
        query_lora_rank=6,
        nope_head_dim=4,
        rope_head_dim=4,
        value_head_dim=4,
        rotary=RotaryEmbedding(use_interleaved_pairs=True),
        use_causal_mask=True,
        name="latent",
    )
    window = SlidingWindowAttention(
        num_heads=4,
        head_dim=8,
        query_lora_rank=6,
        rope_head_dim=4,
        num_output_groups=2,
        output_lora_rank=6,
        sliding_window=3,
        rotary=RotaryEmbedding(use_interleaved_pairs=True),
        name="window",
    )
    layouts = read(build(latent, window), make_mesh(2, 2))
    del layouts["table/embeddings"]
    assert layouts == {
        **{f"latent/{name}/kernel": (None, "model", None) for name in ("query_up", "key_up")},
        "latent/value_up/kernel": (None, "model", None),
        "latent/output/kernel": ("model", None, None),
        "window/query_up/kernel": (None, "model", None),
        "window/output_down/kernel": ("model", None, None),
        "window/output/kernel": ("model", None, None),
    }


def test_experts_are_cut_by_expert_and_what_all_tokens_share_by_features():
    moe = DeepSeekMoE(
        ExpertRouter(8, num_experts_per_token=2), 12, num_shared_experts=1, name="moe"
    )
    feed_forward = SwiGLU(32, use_bias=True, name="feed_forward")
    head = ChunkedCrossEntropy(30, use_bias=True, name="head")
    inputs, labels = keras.Input((5,)), keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(30, 16, name="table")(inputs)
    model = keras.Model([inputs, labels], head(feed_forward(moe(x)), labels))
    mesh = make_mesh(2, 2, 2, names=("batch", "model", "expert"))
    assert read(model, mesh, expert_axis="expert") == {
        "table/embeddings": ("model", None),
        **{f"moe/{name}_kernel": ("expert", None, None) for name in ("gate", "up", "down")},
        **{f"moe/shared_experts/{name}/kernel": (None, "model") for name in ("gate", "up")},
        "moe/shared_experts/down/kernel": ("model", None),
        **{f"feed_forward/{name}/kernel": (None, "model") for name in ("gate", "up")},
        **{f"feed_forward/{name}/bias": ("model",) for name in ("gate", "up")},
        "feed_forward/down/kernel": ("model", None),
        "head/kernel": (None, "model"),
        "head/bias": ("model",),
    }


def test_what_does_not_divide_is_left_whole_and_named(caplog):
    model = build(SwiGLU(31, name="odd"))
    assert list(read(model, make_mesh(1, 2))) == ["table/embeddings"]
    assert "so whole on each: odd/gate/kernel (16, 31), odd/up/kernel" in caplog.text


def test_what_can_not_be_cut_is_refused():
    mesh = make_mesh(1, 2)
    with pytest.raises(InvalidInputError, match="is not built"):
        transformer_layout_map(keras.Sequential([SwiGLU(4)]), mesh)
    with pytest.raises(InvalidInputError, match="Unknown axis of the mesh 'modle': did you mean"):
        transformer_layout_map(build(), mesh, model_axis="modle")
    with pytest.raises(InvalidInputError, match="no attention, SwiGLU, experts or embedding table"):
        transformer_layout_map(keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)]), mesh)
