import keras
import numpy as np

from keras_deepseek.models import DeepSeekV4CausalLM
from keras_deepseek.testing import assert_close
from tests.oracles.deepseek_v4_models import draw_tokens, make_config, perturb


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def make_layer(depth=1, **kwargs):
    model = DeepSeekV4CausalLM(make_config(num_prediction_layers=depth, **kwargs))
    return perturb(model).multi_token_prediction


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def rms_norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * to_numpy(scale)


def test_it_computes_the_formula():
    layer = make_layer(depth=2)
    streams, tokens = draw(2, 7, 3, 12), draw_tokens(2, 7)["token_ids"]
    states, expected = streams, []
    for k in range(2):
        ids = np.roll(tokens, -1 - k, axis=1)
        embedded = to_numpy(layer.token_embedding(ids))
        read = rms_norm(states, layer.hidden_norms[k].scale)
        written = rms_norm(embedded, layer.embedding_norms[k].scale)
        x = read @ to_numpy(layer.hidden_projections[k].kernel)
        x = x + (written @ to_numpy(layer.embedding_projections[k].kernel))[:, :, None]
        mask = np.broadcast_to(np.arange(7) < 6 - k, (2, 7))
        states = to_numpy(layer.blocks[k](keras.ops.convert_to_tensor(x), mask=mask))
        collapsed = to_numpy(layer.collapses[k](keras.ops.convert_to_tensor(states)))
        hidden = rms_norm(collapsed, layer.output_norms[k].scale)
        expected.append(to_numpy(layer.output_head(keras.ops.convert_to_tensor(hidden))))
    for k, logits in enumerate(layer(streams, tokens)):
        assert_close(to_numpy(logits)[:, : 6 - k], expected[k][:, : 6 - k], 1e-5)


def test_a_module_sees_no_token_behind_its_own():
    layer = make_layer()
    streams, tokens = draw(1, 9, 3, 12), draw_tokens(1, 9)["token_ids"]
    (old_logits,) = map(to_numpy, layer(streams, tokens))
    changed = tokens.copy()
    changed[0, 6] = (changed[0, 6] + 1) % 31
    (new_logits,) = map(to_numpy, layer(streams, changed))
    np.testing.assert_allclose(new_logits[0, :5], old_logits[0, :5], atol=1e-6)
    assert np.abs(new_logits[0, 5] - old_logits[0, 5]).max() > 1e-4


def test_it_is_the_same_after_its_config():
    layer = make_layer(stream_epsilon=1e-4)
    revived = type(layer).from_config(layer.get_config())
    streams, tokens = draw(1, 5, 3, 12), draw_tokens(1, 5)["token_ids"]
    revived(streams, tokens)
    assert revived.stream_epsilon == 1e-4
    assert revived.get_config() == layer.get_config()


def test_the_loss_is_the_mean_of_the_cross_entropy_of_the_token_after_the_next():
    layer = make_layer()
    streams, tokens = draw(2, 6, 3, 12), draw_tokens(2, 6)["token_ids"]
    (logits,) = map(to_numpy, layer(streams, tokens, training=True))
    logits = logits.astype("float64")[:, :4]
    normalized = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(normalized, tokens[:, 2:, None], -1)
    assert_close(to_numpy(layer.losses[-1]), -0.3 * chosen.mean(), 1e-5)
