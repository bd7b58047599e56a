import math

import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers import (
    ChunkedCrossEntropy,
    DeepSeekMoE,
    ExpertRouter,
    GroupedQueryAttention,
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
    grouped = GroupedQueryAttention(4, head_dim=4, use_bias=True, name="grouped")
    layouts = read(build(latent, window, grouped), make_mesh(2, 2))
    del layouts["table/embeddings"]
    assert layouts == {
        **{f"latent/{name}/kernel": (None, "model", None) for name in ("query_up", "key_up")},
        "latent/value_up/kernel": (None, "model", None),
        "latent/output/kernel": ("model", None, None),
        "window/query_up/kernel": (None, "model", None),
        "window/output_down/kernel": ("model", None, None),
        "window/output/kernel": ("model", None, None),
        **{f"grouped/{name}/kernel": (None, "model") for name in ("query", "key", "value")},
        **{f"grouped/{name}/bias": ("model",) for name in ("query", "key", "value")},
        "grouped/output/kernel": ("model", None),
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
        **{f"moe/expert_{name}/kernel": ("expert", None, None) for name in ("gate", "up", "down")},
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


def build_mixture():
    moe = DeepSeekMoE(
        ExpertRouter(8, num_experts_per_token=2, name="router"),
        12,
        num_shared_experts=1,
        name="moe",
    )
    return build(moe, keras.layers.Dense(24, name="dense"), keras.layers.Dense(7, name="odd"))


def test_a_data_axis_cuts_each_matrix_along_what_is_left(caplog):
    mesh = make_mesh(4, 2, names=("batch", "expert"))
    arguments = {"model_axis": None, "expert_axis": "expert", "data_axis": "batch"}
    layouts = read(build_mixture(), mesh, **arguments)
    assert layouts == {
        "table/embeddings": (None, "batch"),  # 30 rows don't divide by 4.
        "moe/router/kernel": ("batch", None),
        "moe/expert_gate/kernel": ("expert", "batch", None),
        "moe/expert_up/kernel": ("expert", "batch", None),
        "moe/expert_down/kernel": ("expert", None, "batch"),
        **{f"moe/shared_experts/{name}/kernel": ("batch", None) for name in ("gate", "up")},
        "moe/shared_experts/down/kernel": (None, "batch"),
        "dense/kernel": (None, "batch"),
        "odd/kernel": ("batch", None),
    }
    assert not caplog.text
    read(build_mixture(), make_mesh(5, 1, names=("batch", "expert")), **arguments)
    assert "devices of 'batch', so whole on each: moe/router/kernel (16, 8)" in caplog.text


def test_the_layout_of_a_model_is_known_before_it_is_built():
    mesh = make_mesh(2, 2)
    keras.utils.set_random_seed(1)
    layout_map = transformer_layout_map(build_unnamed, mesh, data_axis="batch")
    model = build_unnamed()
    of_model = transformer_layout_map(model, mesh, data_axis="batch")
    assert {path: layout_map[path].axes for path in layout_map} == {
        path: of_model[path].axes for path in of_model
    }
    keras.utils.set_random_seed(1)
    assert_equal(build_unnamed().get_weights(), model.get_weights())


def build_unnamed():
    inputs = keras.Input((5,))
    x = keras.layers.Dropout(0.5)(keras.layers.Embedding(30, 16)(inputs))
    return keras.Model(inputs, keras.layers.Dense(4)(SwiGLU(32)(x)))


def assert_equal(expected, received):
    for first, second in zip(expected, received, strict=True):
        np.testing.assert_array_equal(first, second)


def test_weights_of_one_path_and_two_shapes_are_refused():
    def build_part(size):
        inputs = keras.Input((size,))
        return keras.Model(inputs, keras.layers.Dense(4, name="a")(inputs))

    inputs = keras.Input((8,))
    model = keras.Model(inputs, [build_part(8)(inputs), build_part(4)(inputs[:, :4])])
    with pytest.raises(InvalidInputError, match="Two weights have the path 'a/kernel'"):
        transformer_layout_map(model, make_mesh(2, 1), data_axis="batch")


def test_what_can_not_be_cut_is_refused():
    mesh = make_mesh(1, 2)
    with pytest.raises(InvalidInputError, match="is not built"):
        transformer_layout_map(keras.Sequential([SwiGLU(4)]), mesh)
    with pytest.raises(InvalidInputError, match="Unknown axis of the mesh 'modle': did you mean"):
        transformer_layout_map(build(), mesh, model_axis="modle")
    with pytest.raises(InvalidInputError, match="Unknown axis of the mesh 'data'"):
        transformer_layout_map(build(), mesh, data_axis="data")
    with pytest.raises(InvalidInputError, match="no attention, SwiGLU, experts or embedding table"):
        transformer_layout_map(keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)]), mesh)
