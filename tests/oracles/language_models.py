"""What holds for every language model: the checks that the tests of the families share.

A family's test names its task and a tiny config; a model of it is made once a module.
"""

import keras
import numpy as np

from keras_deepseek.layers import DeepSeekMoE, SwiGLU
from keras_deepseek.testing import assert_close

LENGTH, PADDING = 7, 2


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def draw_batch(vocabulary_size, side="left", seed=0):
    """Returns two sequences, the second of them padded on a side."""
    tokens = np.random.default_rng(seed).integers(1, vocabulary_size, (2, LENGTH)).astype("int32")
    mask = np.ones_like(tokens)
    mask[1, slice(PADDING) if side == "left" else slice(-PADDING, None)] = 0
    return {"token_ids": tokens, "padding_mask": mask}


def count_positions(mask):
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype("int32")


def perturb(model, seed=0):
    """Draws all weights anew, those too that are zeros or ones at first."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if not variable.path.endswith(("expert_load", "seed_generator_state")):
            is_scale = variable.path.endswith(("scale", "gamma"))
            variable.assign(is_scale + rng.normal(scale=0.2, size=variable.shape))
    return model


def real(logits, batch):
    return to_numpy(logits)[batch["padding_mask"] > 0]


def check_saving(model, path):
    """The config and the weights survive: `from_config`, and a `.keras` file."""
    batch = draw_batch(model.config.vocabulary_size)
    model.save(path)
    revived = keras.saving.load_model(path)
    assert type(revived) is type(model)
    assert revived.config == model.config
    assert_close(real(revived(batch), batch), real(model(batch), batch))
    other = type(model).from_config(model.get_config())
    assert [tuple(w.shape) for w in other.weights] == [tuple(w.shape) for w in model.weights]


def check_cached_decoding(model, pieces):
    """Tokens that come in pieces have the logits of the whole, also with padding on the left."""
    batch = draw_batch(model.config.vocabulary_size)
    tokens, mask = batch["token_ids"], batch["padding_mask"]
    positions = count_positions(mask)
    whole = to_numpy(model(batch))
    cache = model.make_cache(len(tokens), LENGTH + 2)
    for start, stop in pieces:
        piece = (slice(None), slice(start, stop))
        logits, hidden_states, cache = model.call_with_cache(
            tokens[piece], cache, start, padding_mask=mask[piece], positions=positions[piece]
        )
        is_real = mask[piece] > 0
        assert hidden_states.shape[:2] == logits.shape[:2]
        assert_close(to_numpy(logits)[is_real], whole[piece][is_real], 2e-5)
    last, _, _ = model.call_with_cache(
        tokens[:, -3:], cache, LENGTH - 3, mask[:, -3:], positions[:, -3:], num_logits=2
    )
    assert_close(to_numpy(last), whole[:, -2:], 2e-5)
    last, hidden_states, _ = model.call_with_cache(
        tokens, model.make_cache(len(tokens), LENGTH), 0, mask, positions, num_hidden_states=1
    )
    assert hidden_states.shape[1] == 1
    assert_close(to_numpy(last), whole[:, -1:], 2e-5)


def check_padding_counts_for_nothing(model):
    """What stands at padded places, on either side, changes no logits of the others."""
    for side in ("left", "right"):
        batch = draw_batch(model.config.vocabulary_size, side)
        hidden = batch["padding_mask"] == 0
        other = {**batch, "token_ids": np.where(hidden, 1, batch["token_ids"])}
        assert not np.array_equal(batch["token_ids"], other["token_ids"])
        assert_close(real(model(other), batch), real(model(batch), batch))


def check_half_precision(model, dtype):
    """Logits are float32 under any policy, and near those of float32."""
    batch = draw_batch(model.config.vocabulary_size)
    half = type(model)(model.config, dtype=f"mixed_{dtype}")
    half.set_weights(model.get_weights())
    logits = half(batch)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert half.backbone.final_norm.compute_dtype == dtype
    expected = real(model(batch), batch)
    error = np.abs(real(logits, batch) - expected)
    assert np.median(error) < 0.05 * np.abs(expected).max()


def check_fit(model, steps=8):
    """A sequence that is seen again and again is learned."""
    batch = draw_batch(model.config.vocabulary_size, side="right")
    targets = np.roll(batch["token_ids"], -1, axis=1)
    model.compile(
        keras.optimizers.Adam(5e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    repeated = {name: np.tile(array, (steps, 1)) for name, array in batch.items()}
    history = model.fit(
        repeated, np.tile(targets, (steps, 1)), batch_size=2, epochs=2, verbose=0, shuffle=False
    )
    first, last = history.history["loss"]
    assert np.isfinite(last)
    assert last < 0.9 * first


def check_backbone(backbone_class):
    """The layers are those of the config, and come back from its serialized form."""
    config_class = backbone_class.config_class
    config = config_class.from_preset("tiny", num_layers=3, num_dense_layers=2)
    backbone = backbone_class(config, name="body")
    kinds = [type(block.feed_forward) for block in backbone.transformer_layers]
    assert kinds == [SwiGLU, SwiGLU, DeepSeekMoE]
    assert backbone.output_shape == (None, None, config.hidden_dim)
    backbone = backbone_class(config_class.from_preset("tiny"), dtype="bfloat16")
    revived = backbone_class.from_config(backbone.get_config())
    assert revived.config == backbone.config
    assert [(w.path, w.dtype) for w in revived.weights] == [
        (w.path, w.dtype) for w in backbone.weights
    ]
    tokens = np.array([[3, 1, 4]])
    outputs = revived({"token_ids": tokens, "padding_mask": np.ones_like(tokens)})
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
