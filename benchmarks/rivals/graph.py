"""Models as they are and optimized by `graph.optimize`, in each execution mode of one backend."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
from keras import layers, ops, tree

from keras_deepseek import backend, graph
from keras_deepseek.models import (
    SequentialRecommender,
    SequentialRecommenderConfig,
    enable_lora,
)

BACKEND = keras.backend.backend()
RNG = np.random.default_rng(0)
Case = tuple[keras.Model, Any]


def make_rivals(case: str, modes: list[str], quick: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns `"MODE original"` and `"MODE optimized"` for each mode, to call without arguments."""
    is_step = case.endswith("step")
    model, inputs = CASES[case](quick)
    inputs = tree.map_structure(ops.convert_to_tensor, inputs)
    mode = "train" if is_step else "inference"
    optimized = graph.optimize(model, inputs, mode=mode, measure=False)
    rivals = {}
    for name in modes:
        for kind, rival_model in {"original": model, "optimized": optimized}.items():
            make = _step if is_step else _onnx if name == "ONNX Runtime" else _forward
            rivals[f"{name} {kind}"] = make(rival_model, inputs, name in ("compiled", "XLA"))
    report = optimized.report
    assert report is not None
    rewrites = {name: len(matches) for name, matches in report.rewrites.items()}
    facts = {"multiply_adds": report.multiply_adds, "rewrites": rewrites}
    return rivals, {**facts, "largest_difference": report.largest_difference}


def _forward(model: keras.Model, inputs: Any, uses_xla: bool) -> Callable[[], Any]:
    def call(*tensors: Any) -> list[Any]:
        return tree.flatten(model(tree.pack_sequence_as(inputs, tensors), training=False))

    function = backend.current().compute.compile_function(
        call, model.variables, uses_xla=uses_xla, has_gradients=False
    )
    tensors = tree.flatten(inputs)
    return lambda: ops.convert_to_numpy(function(*tensors)[0])


def _step(model: keras.Model, inputs: Any, uses_xla: bool) -> Callable[[], Any]:
    """Returns a step of `train_on_batch`. Both models train the same weights."""
    shape = (inputs.shape[0], *model.output.shape[1:])
    targets = RNG.normal(size=[inputs.shape[1] if n is None else n for n in shape])
    model.compile("sgd", "mse", jit_compile=uses_xla or BACKEND == "jax")
    batch = ops.convert_to_numpy(inputs), targets.astype("float32")
    return lambda: model.train_on_batch(*batch)


def _onnx(model: keras.Model, inputs: Any, _: bool) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    from keras_deepseek.deploy import Exporter

    with TemporaryDirectory() as folder:
        Exporter(model, "onnx", verbose=False).export(Path(folder) / "bundle")
        (path,) = Path(folder).rglob("*.onnx")
        session = onnxruntime.InferenceSession(path.read_bytes(), options)
    arrays = [ops.convert_to_numpy(tensor) for tensor in tree.flatten(inputs)]
    feeds = {node.name: array for node, array in zip(session.get_inputs(), arrays, strict=True)}
    return lambda: session.run(None, feeds)


def _encoder(
    dim: int, num_layers: int, length: int, heads: int, dropout: float = 0.1, *, reads_first: bool
) -> keras.Model:
    x = inputs = keras.Input((length, dim))
    for _ in range(num_layers):
        heads_out = layers.MultiHeadAttention(heads, dim // heads, dropout=dropout)(x, x)
        x = layers.LayerNormalization()(x + layers.Dropout(dropout)(heads_out))
        hidden = layers.Dense(dim)(layers.Dense(4 * dim, activation="gelu")(x))
        x = layers.LayerNormalization()(x + layers.Dropout(dropout)(hidden))
    return keras.Model(inputs, layers.Dense(4)(x[:, 0]) if reads_first else x)


def _draw(*shape: int) -> Any:
    return RNG.normal(size=shape).astype("float32")


def _first_token(quick: bool) -> Case:
    dim, length = (32, 16) if quick else (256, 128)
    return _encoder(dim, 4, length, 4, reads_first=True), _draw(4, length, dim)


def _bert_classifier(quick: bool) -> Case:
    import keras_hub

    dim, length = (32, 16) if quick else (256, 128)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=1000,
        num_layers=4,
        num_heads=4,
        hidden_dim=dim,
        intermediate_dim=4 * dim,
        max_sequence_length=length,
    )
    model = keras_hub.models.BertTextClassifier(backbone, num_classes=4, preprocessor=None)
    ids = RNG.integers(1, 1000, size=(4, length)).astype("int32")
    names = {"padding_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
    return model, {**names, "token_ids": ids}


def _recommender(quick: bool) -> Case:
    config = SequentialRecommenderConfig.from_preset("tiny" if quick else "base", num_items=1000)
    ids = RNG.integers(1, 1000, size=(8, 16 if quick else config.max_length - 10))
    return SequentialRecommender(config), {"item_ids": ids.astype("int32")}


def _llama(quick: bool) -> Case:
    import keras_hub

    dim, length = (32, 16) if quick else (256, 128)
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=1000,
        num_layers=4,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=dim,
        intermediate_dim=3 * dim,
    )
    names = ("padding_mask", "token_ids")
    inputs = {name: keras.Input((length,), dtype="int32", name=name) for name in names}
    last = backbone(inputs)[:, -1]
    ids = RNG.integers(1, 1000, size=(4, length)).astype("int32")
    model = keras.Model(inputs, backbone.token_embedding(last, reverse=True))
    return model, {"padding_mask": np.ones_like(ids), "token_ids": ids}


def _lora(quick: bool) -> Case:
    dim = 64 if quick else 768
    model = _encoder(dim, 1, 128, dim // 64, 0.0, reads_first=False)
    enable_lora(model, 8)
    return model, _draw(4, 128, dim)


@keras.saving.register_keras_serializable("benchmark")
class NaiveLatentAttention(layers.Layer):
    """Attention that expands a latent to keys and values of each head."""

    def build(self, shapes: Any) -> None:
        self.keys, self.values = (self.add_weight(shape=(512, 16, 128)) for _ in range(2))

    def call(self, query: Any, latent: Any) -> Any:
        keys, values = (
            ops.einsum("btc,chd->bthd", latent, kernel) for kernel in (self.keys, self.values)
        )
        weights = ops.softmax(ops.einsum("bshd,bthd->bhst", query, keys) * 128**-0.5)
        return ops.einsum("bhst,bthd->bshd", weights, values)


def _naive_latent(quick: bool) -> Case:
    length = 64 if quick else 4096
    query, latent = keras.Input((1, 16, 128)), keras.Input((length, 512))
    model = keras.Model([query, latent], NaiveLatentAttention()(query, latent))
    return model, [_draw(1, 1, 16, 128), _draw(1, length, 512)]


def _linear_attention(quick: bool) -> Case:
    length = 128 if quick else 2048
    inputs = keras.Input((length, 64))
    query, key, value = (layers.Dense(64, use_bias=False)(inputs) for _ in range(3))
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1)))
    return keras.Model(inputs, ops.matmul(scores, value)), _draw(2, length, 64) * 0.1


@keras.saving.register_keras_serializable("benchmark")
class LowRank(layers.Layer):
    """A product by a matrix of rank 16, which is computed."""

    def build(self, shape: Any) -> None:
        self.a = self.add_weight(shape=(shape[-1], 16))
        self.b = self.add_weight(shape=(16, shape[-1]))

    def call(self, x: Any) -> Any:
        return ops.matmul(x, ops.matmul(self.a, self.b))


def _low_rank(quick: bool) -> Case:
    dim = 64 if quick else 512
    inputs = keras.Input((dim,))
    return keras.Model(inputs, LowRank()(LowRank()(inputs))), _draw(64, dim)


def _small_encoder(_: bool) -> Case:
    return _encoder(128, 4, 16, 4, reads_first=False), _draw(2, 16, 128)


def _duplicated(quick: bool) -> Case:
    """Returns a block whose feed-forward network stands twice, as careless code has it."""
    dim = 64 if quick else 768
    inputs = keras.Input((128, dim))
    up, down = layers.Dense(4 * dim, activation="gelu"), layers.Dense(dim)
    gate = layers.Dense(dim, activation="sigmoid")
    return keras.Model(inputs, gate(down(up(inputs))) * down(up(inputs))), _draw(2, 128, dim)


def _convolutions(quick: bool) -> Case:
    size = 8 if quick else 32
    x = inputs = keras.Input((size, size, 64))
    for _ in range(6):
        x = layers.Conv2D(64, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, x), _draw(2, size, size, 64)


def _attention_with_dropout(quick: bool) -> Case:
    length = 32 if quick else 512
    inputs = keras.Input((length, 256))
    attention = layers.MultiHeadAttention(4, 64, dropout=0.1)
    return keras.Model(inputs, attention(inputs, inputs)), _draw(1, length, 256)


def _clean_block(quick: bool) -> Case:
    dim = 64 if quick else 768
    return _encoder(dim, 1, 128, dim // 64, reads_first=False), _draw(1, 128, dim)


CASES: dict[str, Callable[[bool], Case]] = {
    "first-token classifier": _first_token,
    "first-token classifier, step": _first_token,
    "BertTextClassifier": _bert_classifier,
    "SequentialRecommender": _recommender,
    "Llama, last token": _llama,
    "LoRA, width 768, step": _lora,
    "naive latent attention": _naive_latent,
    "linear attention": _linear_attention,
    "x(AB)": _low_rank,
    "small encoder": _small_encoder,
    "duplicated branches": _duplicated,
    "Conv+BN": _convolutions,
    "attention with dropout": _attention_with_dropout,
    "clean BERT block": _clean_block,
}
