"""Layers and a language model on a device, against the CPU."""

import time
from typing import Any

import keras
import numpy as np

from gpu_tests.place import Place, full_float32
from keras_deepseek import backend, layers
from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV3Config
from keras_deepseek.testing import TOLERANCES, LayerTestCase, assert_close
from keras_deepseek.testing.layer_subject import LayerSubject, is_float, to_tensors

TOLERANCE = 1e-4
"""The largest difference in float32, as a share of the largest number.

Sums of some hundred products in another order, behind a softmax or a norm, lose about 1e-5;
TensorFloat-32 would lose 1e-3."""

DIM = 64
SEQUENCE = (2, 96, DIM)
ROTARY = layers.RotaryEmbedding(use_interleaved_pairs=True)
LATENT = {
    "num_heads": 4,
    "nope_head_dim": 16,
    "rope_head_dim": 8,
    "value_head_dim": 16,
    "key_value_lora_rank": 32,
    "rotary": ROTARY,
    "use_causal_mask": True,
}
WINDOW = {
    "num_heads": 4,
    "head_dim": 16,
    "rope_head_dim": 8,
    "query_lora_rank": 24,
    "num_output_groups": 2,
    "output_lora_rank": 16,
    "sliding_window": 16,
    "rotary": ROTARY,
}
INDEXER = {"index_top_k": 8, "index_num_heads": 16, "index_head_dim": 16}


Case = tuple[type[keras.Layer], dict[str, Any], Any, Any]
"""A layer class, its arguments, the shape of its inputs, and their dtype."""


def _case(
    layer_class: type[keras.Layer], shape: Any = SEQUENCE, dtype: Any = "float32", **arguments: Any
) -> Case:
    return layer_class, arguments, shape, dtype


def _cases() -> list[Case]:
    """Returns layers of each kind."""
    config = keras.saving.serialize_keras_object
    router = layers.ExpertRouter(8, 2, kernel_initializer="zeros")
    return [
        _case(layers.MultiHeadLatentAttention, **LATENT),
        _case(layers.DeepSeekSparseAttention, **LATENT, **INDEXER),
        _case(layers.SlidingWindowAttention, **WINDOW),
        _case(layers.CompressedSparseAttention, **WINDOW, **INDEXER, compress_rate=4),
        _case(layers.HeavilyCompressedAttention, **WINDOW, compress_rate=8),
        _case(
            layers.NativeSparseAttention,
            num_heads=4,
            head_dim=16,
            num_key_value_heads=2,
            compression_block_size=8,
            compression_stride=4,
            selection_block_size=8,
            num_selected_blocks=4,
            sliding_window=16,
            rotary=layers.RotaryEmbedding(),
        ),
        _case(
            layers.BlockSparseAttention, num_heads=4, head_dim=16, block_size=16, sliding_window=32
        ),
        _case(
            layers.LinearAttention, num_heads=4, head_dim=16, chunk_size=32, use_causal_mask=True
        ),
        _case(layers.CachedAttention, attention=config(keras.layers.GroupQueryAttention(16, 4, 2))),
        _case(layers.DeepSeekMoE, router=config(router), intermediate_dim=32),
        _case(layers.SwiGLU, intermediate_dim=128),
        _case(layers.RotaryEmbedding, (2, 96, 4, 16)),
        _case(
            layers.ManifoldConstrainedHyperConnections,
            (2, 24, 4, DIM),
            layer=config(layers.SwiGLU(32)),
        ),
        _case(
            layers.ChunkedCrossEntropy,
            {"inputs": SEQUENCE, "targets": SEQUENCE[:2]},
            {"inputs": "float32", "targets": "int32"},
            vocabulary_size=500,
            chunk_size=64,
        ),
        _case(
            layers.MaskedPositionHead,
            {"inputs": SEQUENCE, "mask_positions": (2, 12)},
            {"inputs": "float32", "mask_positions": "int32"},
            vocabulary_size=500,
        ),
        _case(
            layers.MultiTokenPrediction,
            {"inputs": SEQUENCE, "token_ids": SEQUENCE[:2]},
            {"inputs": "float32", "token_ids": "int32"},
            block=config(layers.SwiGLU(32)),
            token_embedding=config(keras.layers.Embedding(50, DIM, name="tokens")),
            output_head=config(keras.layers.Dense(50, name="head")),
        ),
        _case(keras.layers.RMSNormalization),
        _case(keras.layers.LayerNormalization),
    ]


def check_layers(target: Place) -> str:
    """Holds outputs and gradients of layers against the CPU's, with the same weights."""
    largest, failures = {"outputs": 0.0, "gradients": 0.0}, []
    with full_float32():
        cases = _cases()
        for layer_class, arguments, shape, dtype in cases:
            name = layer_class.__name__
            try:
                subject = LayerTestCase().make_subject(layer_class, arguments, shape, dtype)
                expected, weights = _compute(subject, "cpu:0", None)
                received, _ = _compute(subject, target.device, weights)
                for what, arrays in received.items():
                    for array, other in zip(arrays, expected[what], strict=True):
                        assert_close(target.measured(array), other, TOLERANCE, what)
                        scale = np.abs(other).max(initial=0.0) or 1.0
                        error = np.abs(array - other).max(initial=0.0) / scale
                        largest[what] = max(largest[what], float(error))
            except Exception as error:  # noqa: BLE001 - the next layer is looked at all the same
                failures.append(f"{name}: {type(error).__name__}: {error}")
    assert not failures, f"{len(failures)} of {len(cases)} layers: " + "; ".join(failures)
    return f"{len(cases)} layers; largest relative difference: " + ", ".join(
        f"{what} {error:.1g}" for what, error in largest.items()
    )


def check_half_precision(target: Place) -> str:
    """Holds layers in half precision on the device against those in float32 on the CPU."""
    errors = []
    # Those whose outputs do not jump: a router that rounds may choose another expert.
    smooth = ("MultiHeadLatent", "SlidingWindow", "Linear", "Cached", "SwiGLU", "RMSNorm")
    cases = [case for case in _cases() if case[0].__name__.startswith(smooth)]
    for dtype in ("bfloat16", "float16"):
        largest = 0.0
        for layer_class, arguments, shape, input_dtype in cases:
            subject = LayerTestCase().make_subject(layer_class, arguments, shape, input_dtype)
            with backend.current().devices.on_device("cpu:0"):
                layer = subject.make_layer()
                (expected,), weights = subject.compile(layer)(subject.inputs), layer.get_weights()
            with backend.current().devices.on_device(target.device):
                layer = subject.make_layer(dtype=f"mixed_{dtype}")
                layer.set_weights(weights)
                (output,) = subject.compile(layer)(subject.inputs)
            array = target.measured(output).astype("float32")
            assert_close(array, expected, dtype, f"{layer_class.__name__} in {dtype}")
            largest = max(largest, float(np.abs(array - expected).max() / np.abs(expected).max()))
        errors.append(f"{dtype} {largest:.1g} of {TOLERANCES[dtype]:.1g} allowed")
    return f"{len(cases)} layers; largest relative difference: {', '.join(errors)}"


def _compute(
    subject: LayerSubject, device: str, weights: list[np.ndarray] | None
) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray]]:
    """Returns a layer's outputs and gradients on a device, compiled, and its weights."""
    arrays = keras.tree.flatten(subject.inputs)

    def total(*floats: Any) -> Any:
        """Returns the sum of all outputs, each number weighted by another one."""
        float_iterator, weigh = iter(floats), np.random.default_rng(0).standard_normal
        inputs = [next(float_iterator) if is_float(array) else array for array in arrays]
        packed = keras.tree.pack_sequence_as(subject.inputs, inputs)
        outputs = keras.tree.flatten(subject.call(layer, to_tensors(packed)))
        weighted = [
            keras.ops.sum(output * keras.ops.convert_to_tensor(weigh(output.shape), "float32"))
            for output in outputs
            if is_float(output)
        ]
        return sum(weighted)

    with backend.current().devices.on_device(device):
        layer = subject.make_layer()
        if weights is not None:
            layer.set_weights(weights)
        outputs = subject.compile(layer)(subject.inputs)
        by_input, by_variable = backend.current().compute.compute_gradients(
            total, [array for array in arrays if is_float(array)], list(layer.trainable_variables)
        )
        results = {"outputs": outputs, "gradients": [*by_input, *by_variable]}
        return results, layer.get_weights()


def check_decoding(target: Place) -> str:
    """Generates the CPU's tokens with a small DeepSeek-V3, and times more of them."""
    config = DeepSeekV3Config.from_preset("tiny", initializer_range=0.2)
    prompts = np.random.default_rng(0).integers(1, 256, (4, 12)).tolist()
    generated, weights = {}, None
    with full_float32():
        for device in ("cpu:0", target.device):
            with backend.current().devices.on_device(device):
                keras.utils.set_random_seed(0)
                model = DeepSeekV3CausalLM(config)
                if weights is not None:
                    model.set_weights(weights)
                generated[device, weights is None] = model.generate(prompts, max_new_tokens=24)
                weights = model.get_weights()
        expected, received = generated["cpu:0", True], generated[target.device, False]
        differ = np.count_nonzero(target.measured(received) != np.array(expected))
        assert not differ, f"{differ} of {np.size(expected)} tokens, prompts included, differ"
        num_tokens = 128 if target.is_gpu else 24
        with backend.current().devices.on_device(target.device):
            model.generate(prompts, max_new_tokens=num_tokens)  # Compiles.
            start = time.perf_counter()
            model.generate(prompts, max_new_tokens=num_tokens)
            seconds = time.perf_counter() - start
    speed = len(prompts) * num_tokens / seconds
    return f"{24 * len(prompts)} tokens equal; {speed:.0f} tokens/s at batch 4"
